// The forward part: a document's code, row by row, in the form of aligned.hpp or that of packed.hpp. It scores whole
// codes, of all documents or of candidates.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/allowed.hpp"
#include "base/lengths.hpp"
#include "base/thread_pool.hpp"
#include "base/top_k.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Rows that are scored at a time.
inline constexpr std::size_t kScoredRows = 64;

// The rows of a codec: n_documents of k pairs each in borrowed arrays. u holds kMaxLatents entries, so that
// any latent of a damaged file still falls inside.
template <typename T>
concept CodeRows = requires(const T& codes, std::size_t first, std::size_t count, const std::size_t* rows,
                            const float* u, const Kernels& kernel, float* results) {
  codes.n_documents;
  codes.k;
  // Fetches row `first`, which will be scored soon.
  codes.prefetch(first);
  // <u, code> of the rows [first, first + count), and of at most kScoredRows rows anywhere.
  codes.scores(first, count, u, kernel, results);
  codes.scores_of(rows, count, u, kernel, results);
  // Whether row `first` holds ascending latents below n_latents, here `count`, and finite values.
  { codes.is_whole(first, count) } -> std::same_as<bool>;
};

// Scores rows anywhere in a forward part, and offers them. They are fetched as they come and copied together: copies
// wait for memory side by side, scores nearly one by one, and some processors do not fetch a row ahead that lies in a
// page they have not at hand.
template <CodeRows Codes>
class RowScorer {
 public:
  // Scores go to top_k, where a row counts from first_row on; half the squares of norms are times by_length.
  RowScorer(const Codes& codes, const Lengths& lengths, const float* u, float by_length, std::int64_t first_row,
            TopK& top_k)
      : codes_(codes), lengths_(lengths), u_(u), by_length_(by_length), first_row_(first_row), top_k_(top_k) {}

  void add(std::size_t row) {
    rows_[count_++] = row;
    codes_.prefetch(row);
    if (count_ == kScoredRows) finish();
  }

  // Scores the rows that were added and not scored yet.
  void finish() {
    float scores[kScoredRows];
    codes_.scores_of(rows_, count_, u_, kernels(), scores);
    if (lengths_.are_kept())
      for (std::size_t i = 0; i < count_; ++i) scores[i] += by_length_ * lengths_.half_square_of(rows_[i]);
    for (std::size_t i = 0; i < count_; ++i) top_k_.offer(scores[i], first_row_ + static_cast<std::int64_t>(rows_[i]));
    count_ = 0;
  }

 private:
  const Codes& codes_;
  const Lengths& lengths_;
  const float* u_;
  float by_length_;
  std::int64_t first_row_;
  TopK& top_k_;
  std::size_t rows_[kScoredRows];
  std::size_t count_ = 0;
};

// The forward part in whichever form.
class Forward {
 public:
  virtual ~Forward() = default;

  virtual std::size_t n_documents() const = 0;
  // Of codes; where norms are kept, projections have one entry more, the factor of half their squares.
  virtual std::size_t n_latents() const = 0;
  std::size_t n_entries() const { return n_latents() + (lengths_.are_kept() ? 1 : 0); }
  const Lengths& lengths() const { return lengths_; }
  virtual std::size_t k() const = 0;
  // Throws where a row does not hold ascending latents and finite values.
  virtual void validate(std::size_t num_threads) const = 0;
  // Offers the allowed rows of [first, last) by their whole codes, row 0 as first_row; first is a multiple of 64.
  virtual void scan(const float* u, std::size_t first, std::size_t last, const Allowed& allowed, std::int64_t first_row,
                    TopK& top_k) const = 0;
  // Offers n rows, ascending and counted from first_row on, by their whole codes.
  virtual void rescore(const float* u, const std::int64_t* rows, std::size_t n, std::int64_t first_row,
                       TopK& top_k) const = 0;

 protected:
  explicit Forward(Lengths lengths) : lengths_(lengths) {}

  Lengths lengths_;
};

template <CodeRows Codes>
class ForwardOf final : public Forward {
 public:
  ForwardOf(Codes codes, std::size_t n_latents, Lengths lengths)
      : Forward(lengths), codes_(std::move(codes)), n_latents_(n_latents) {}

  std::size_t n_documents() const override { return codes_.n_documents; }
  std::size_t n_latents() const override { return n_latents_; }
  std::size_t k() const override { return codes_.k; }

  void validate(std::size_t num_threads) const override {
    for_each_row(n_documents(), num_threads, [&](std::size_t row) {
      if (!codes_.is_whole(row, n_latents_))
        throw std::invalid_argument("row " + std::to_string(row) +
                                    " of the codes is not of ascending latents below n_latents " +
                                    std::to_string(n_latents_) + " and finite values");
    });
  }

  void scan(const float* u, std::size_t first, std::size_t last, const Allowed& allowed, std::int64_t first_row,
            TopK& top_k) const override {
    if (!allowed.all()) {
      RowScorer<Codes> scorer = scorer_of(u, first_row, top_k);
      for_each_allowed(allowed, first, last, [&](std::size_t row) { scorer.add(row); });
      scorer.finish();
      return;
    }
    float scores[kScoredRows];
    for (std::size_t begin = first; begin < last; begin += kScoredRows) {
      const std::size_t count = std::min(kScoredRows, last - begin);
      codes_.scores(begin, count, u, kernels(), scores);
      if (lengths_.are_kept())
        for (std::size_t i = 0; i < count; ++i) scores[i] += by_length(u) * lengths_.half_square_of(begin + i);
      for (std::size_t i = 0; i < count; ++i) top_k.offer(scores[i], first_row + static_cast<std::int64_t>(begin + i));
    }
  }

  void rescore(const float* u, const std::int64_t* rows, std::size_t n, std::int64_t first_row,
               TopK& top_k) const override {
    RowScorer<Codes> scorer = scorer_of(u, first_row, top_k);
    for (std::size_t i = 0; i < n; ++i) scorer.add(static_cast<std::size_t>(rows[i] - first_row));
    scorer.finish();
  }

 private:
  // The entry behind those of the latents.
  float by_length(const float* u) const { return lengths_.are_kept() ? u[n_latents_] : 0.0f; }

  RowScorer<Codes> scorer_of(const float* u, std::int64_t first_row, TopK& top_k) const {
    return {codes_, lengths_, u, by_length(u), first_row, top_k};
  }

  Codes codes_;
  std::size_t n_latents_;
};

}  // namespace compressae
