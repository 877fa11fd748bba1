// The forward part: a document's code, row by row, in this aligned form or in the packed one of packed.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/half.hpp"
#include "base/top_k.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Rows that are scored at a time.
inline constexpr std::size_t kScoredRows = 64;

// Arrays of the forward part, borrowed: value i of row r is values[r][i] * scales[r].
struct ForwardView {
  std::size_t n_documents = 0;
  std::size_t k = 0;
  const std::uint16_t* latents = nullptr;  // (n_documents, k)
  const std::int8_t* values = nullptr;     // (n_documents, k)
  const std::uint16_t* scales = nullptr;   // (n_documents) half precision

  // <u, code> of consecutive rows; u holds 65,536 entries, so that any latent of a damaged file still falls inside.
  void scores(std::size_t first, std::size_t count, const float* u, const Kernels& kernel, float* results) const {
    for (std::size_t row = first; row < first + count; ++row)
      *results++ = from_half(scales[row]) * kernel.gather_dot(latents + row * k, values + row * k, k, u);
  }

  // The same of at most kScoredRows rows anywhere.
  void scores_of(const std::size_t* rows, std::size_t count, const float* u, const Kernels& kernel,
                 float* results) const {
    thread_local std::vector<std::uint16_t> near_latents;
    thread_local std::vector<std::int8_t> near_values;
    near_latents.resize(kScoredRows * k);
    near_values.resize(kScoredRows * k);
    std::uint16_t near_scales[kScoredRows];
    for (std::size_t i = 0; i < count; ++i) {
      std::copy_n(latents + rows[i] * k, k, near_latents.data() + i * k);
      std::copy_n(values + rows[i] * k, k, near_values.data() + i * k);
      near_scales[i] = scales[rows[i]];
    }
    const ForwardView near{count, k, near_latents.data(), near_values.data(), near_scales};
    near.scores(0, count, u, kernel, results);
  }

  // Whether a row holds ascending latents below n_latents and finite values.
  bool is_whole(std::size_t row, std::size_t n_latents) const {
    const std::uint16_t* latent = latents + row * k;
    int unsorted = latent[k - 1] >= n_latents;
    for (std::size_t i = 1; i < k; ++i) unsorted |= latent[i] <= latent[i - 1];
    return unsorted == 0 && is_positive_half(scales[row]);
  }
};

// Scores rows anywhere in a forward part, and offers them. Codes is ForwardView or PackedView. They are copied together
// first: copies wait for memory side by side, scores nearly one by one, and to prefetch does not help where a row lies
// in a page that the processor has not at hand.
template <typename Codes>
class RowScorer {
 public:
  // Scores go to top_k, where a row counts from first_row on.
  RowScorer(const Codes& codes, const float* u, std::int64_t first_row, TopK& top_k)
      : codes_(codes), u_(u), first_row_(first_row), top_k_(top_k) {}

  void add(std::size_t row) {
    rows_[count_++] = row;
    if (count_ == kScoredRows) finish();
  }

  // Scores what was added and not scored yet.
  void finish() {
    float scores[kScoredRows];
    codes_.scores_of(rows_, count_, u_, kernels(), scores);
    for (std::size_t i = 0; i < count_; ++i) top_k_.offer(scores[i], first_row_ + static_cast<std::int64_t>(rows_[i]));
    count_ = 0;
  }

 private:
  const Codes& codes_;
  const float* u_;
  std::int64_t first_row_;
  TopK& top_k_;
  std::size_t rows_[kScoredRows];
  std::size_t count_ = 0;
};

// Calls visit(row) for the allowed rows of [first, last); first is a multiple of 64.
template <typename Visit>
void for_each_allowed(const Allowed& allowed, std::size_t first, std::size_t last, const Visit& visit) {
  for (std::size_t begin = first; begin < last; begin += 64) {
    const std::size_t count = std::min<std::size_t>(64, last - begin);
    std::uint64_t bits = 0;
    std::memcpy(&bits, allowed.bitmap + begin / 8, (count + 7) / 8);
    if (count < 64) bits &= (std::uint64_t{1} << count) - 1;
    for (; bits != 0; bits &= bits - 1) visit(begin + static_cast<std::size_t>(__builtin_ctzll(bits)));
  }
}

// Offers the rows of [first, last) by their whole codes; first is a multiple of 64.
template <typename Codes>
void scan_forward(const Codes& codes, const float* u, std::size_t first, std::size_t last, const Allowed& allowed,
                  std::int64_t first_row, TopK& top_k) {
  if (!allowed.all()) {
    RowScorer<Codes> scorer(codes, u, first_row, top_k);
    for_each_allowed(allowed, first, last, [&](std::size_t row) { scorer.add(row); });
    scorer.finish();
    return;
  }
  float scores[kScoredRows];
  for (std::size_t begin = first; begin < last; begin += kScoredRows) {
    const std::size_t count = std::min(kScoredRows, last - begin);
    codes.scores(begin, count, u, kernels(), scores);
    for (std::size_t i = 0; i < count; ++i) top_k.offer(scores[i], first_row + static_cast<std::int64_t>(begin + i));
  }
}

// Offers n rows, ascending from first_row on, by their whole codes.
template <typename Codes>
void rescore_forward(const Codes& codes, const float* u, const std::int64_t* rows, std::size_t n,
                     std::int64_t first_row, TopK& top_k) {
  RowScorer<Codes> scorer(codes, u, first_row, top_k);
  for (std::size_t i = 0; i < n; ++i) scorer.add(static_cast<std::size_t>(rows[i] - first_row));
  scorer.finish();
}

}  // namespace compressae
