// Stage three: the best documents by their codes get scores by what the codes leave out, from residual codes in memory
// or from the original vectors, which may lie on disk.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/half.hpp"
#include "base/top_k.hpp"
#include "codes/residuals.hpp"
#include "kernels/dispatch.hpp"
#include "search/cold.hpp"

namespace compressae {

// Scores documents again.
class Refiner {
 public:
  virtual ~Refiner() = default;
  virtual std::size_t n_documents() const = 0;
  virtual std::size_t dim() const = 0;
  // Replaces the scores of hits, which are sums over their codes; rows ascend. query: (dim).
  virtual void rescore(const float* query, std::span<Hit> hits) const = 0;
};

// Rows that lie in several runs of memory, one run behind the other.
template <typename Run>
class Runs {
 public:
  void add(Run run, std::size_t n_rows) {
    runs_.push_back(run);
    ends_.push_back(size() + n_rows);
  }

  std::size_t size() const { return ends_.empty() ? 0 : ends_.back(); }

  // The run of a row below size(), and the row's number in it.
  std::pair<const Run*, std::size_t> at(std::size_t row) const {
    if (runs_.size() == 1) return {&runs_[0], row};
    const auto i = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), row) - ends_.begin());
    return {&runs_[i], i == 0 ? row : row - ends_[i - 1]};
  }

 private:
  std::vector<Run> runs_;
  std::vector<std::size_t> ends_;
};

// Adds the products of the query with residual codes.
class ResidualRefiner final : public Refiner {
 public:
  ResidualRefiner(const ResidualRows& form, Runs<const std::uint8_t*> runs) : form_(form), runs_(std::move(runs)) {}

  std::size_t n_documents() const override { return runs_.size(); }
  std::size_t dim() const override { return form_.dim(); }

  void rescore(const float* query, std::span<Hit> hits) const override {
    constexpr std::size_t kRowsAtOnce = 64, kSlack = 64;
    thread_local std::vector<std::int8_t> entries;
    thread_local std::vector<std::uint8_t> near;
    const float step = rounded(query, entries) * form_.unit();
    const std::size_t bytes = form_.row_bytes();
    near.resize(kRowsAtOnce * bytes + kSlack);
    std::int32_t sums[kRowsAtOnce];
    for (std::size_t first = 0; first < hits.size(); first += kRowsAtOnce) {
      const std::size_t count = std::min(kRowsAtOnce, hits.size() - first);
      // Copied together, as waits for memory overlap then.
      for (std::size_t i = 0; i < count; ++i) std::memcpy(near.data() + i * bytes, row(hits[first + i].row), bytes);
      kernels().residual_dots(form_.layout(), near.data(), count, entries.data(), sums);
      for (std::size_t i = 0; i < count; ++i)
        hits[first + i].score +=
            from_half(ResidualRows::scale(near.data() + i * bytes)) * step * static_cast<float>(sums[i]);
    }
  }

 private:
  const std::uint8_t* row(std::int64_t row) const {
    const auto [rows, number] = runs_.at(static_cast<std::size_t>(row));
    return *rows + number * form_.row_bytes();
  }

  // Rounds a query to bytes, and returns their step. The error of that is a tenth of what 6 bits leave.
  float rounded(const float* query, std::vector<std::int8_t>& entries) const {
    constexpr std::size_t kWhole = ResidualLayout::kQueryDims;
    float largest = 0.0f;
    for (std::size_t i = 0; i < dim(); ++i) largest = std::max(largest, std::abs(query[i]));
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    entries.assign((dim() + kWhole - 1) / kWhole * kWhole, 0);
    for (std::size_t i = 0; i < dim(); ++i)
      entries[i] = static_cast<std::int8_t>(static_cast<int>(query[i] * inverse + (query[i] < 0 ? -0.5f : 0.5f)));
    return largest / 127.0f;
  }

  ResidualRows form_;
  Runs<const std::uint8_t*> runs_;
};

// The query's products with original vectors, (n, dim) in half or single precision, or its distances from them, in
// place of the sums over codes.
class OriginalRefiner final : public Refiner {
 public:
  struct Vectors {
    const void* rows;
    bool is_half;
    float factor;
  };

  // What vectors are multiplied with a query for: cosines; products times the factors of vectors; or, of vectors times
  // their factors, squared distances, below 0 as smaller ones are better.
  enum class Score { kCosine, kProduct, kDistance };

  // places: of each document, its row in `runs`; null where they are the same.
  OriginalRefiner(std::size_t dim, Runs<Vectors> runs, const std::int64_t* places, std::size_t n_documents,
                  Score wanted)
      : dim_(dim), runs_(std::move(runs)), places_(places), n_documents_(n_documents), wanted_(wanted) {}

  std::size_t n_documents() const override { return n_documents_; }
  std::size_t dim() const override { return dim_; }

  void rescore(const float* query, std::span<Hit> hits) const override {
    thread_local std::vector<Read> reads;
    reads.clear();
    for (Hit& hit : hits) {
      const auto row = static_cast<std::size_t>(hit.row);
      // A damaged file may send a document anywhere.
      const auto place = static_cast<std::size_t>(places_ == nullptr ? hit.row : places_[row]);
      if (place >= runs_.size()) {
        hit.score = std::numeric_limits<float>::lowest();
        continue;
      }
      const auto [vectors, number] = runs_.at(place);
      const std::size_t bytes = dim_ * (vectors->is_half ? sizeof(std::uint16_t) : sizeof(float));
      reads.push_back({static_cast<const std::uint8_t*>(vectors->rows) + number * bytes, bytes, vectors->factor, &hit});
    }
    const auto by_address = [](const Read& a, const Read& b) { return a.from < b.from; };
    if (!std::is_sorted(reads.begin(), reads.end(), by_address)) std::sort(reads.begin(), reads.end(), by_address);
    thread_local std::vector<std::uint8_t> near;
    thread_local std::vector<float> vector;
    vector.resize(dim_);
    ColdReads cold;
    // A first read tells whether others must wait for the disk.
    for (std::size_t first = 0, count = 1; first < reads.size(); first += count, count = kReadsAtOnce) {
      const auto left = std::span<const Read>(reads).subspan(first);
      const auto block = left.first(std::min(count, left.size()));
      cold.before(left);
      // Copied together, as waits for memory overlap then.
      const std::size_t most = dim_ * sizeof(float);
      near.resize(kReadsAtOnce * most);
      for (std::size_t i = 0; i < block.size(); ++i) std::memcpy(near.data() + i * most, block[i].from, block[i].bytes);
      for (std::size_t i = 0; i < block.size(); ++i)
        block[i].hit->score = score(query, near.data() + i * most, block[i], vector);
    }
  }

 private:
  struct Read {
    const std::uint8_t* from;
    std::size_t bytes;
    float factor;
    Hit* hit;
  };

  // copied: the vector, aligned for floats. vector: room for one.
  float score(const float* query, const std::uint8_t* copied, const Read& read, std::vector<float>& vector) const {
    if (read.bytes == dim_ * sizeof(std::uint16_t))
      kernels().widen(reinterpret_cast<const std::uint16_t*>(copied), dim_, vector.data());
    else
      std::memcpy(vector.data(), copied, read.bytes);
    if (wanted_ == Score::kDistance) {
      for (std::size_t i = 0; i < dim_; ++i) vector[i] = query[i] - read.factor * vector[i];
      return finite(-kernels().dot(vector.data(), vector.data(), dim_));
    }
    const float product = kernels().dot(query, vector.data(), dim_);
    if (wanted_ == Score::kProduct) return finite(product * read.factor);
    const float squares = kernels().dot(vector.data(), vector.data(), dim_);
    return finite(squares > 0x1p-80f && squares < 0x1p120f ? product / std::sqrt(squares) : cosine(query, vector));
  }

  static constexpr std::size_t kReadsAtOnce = 16;

  // Of a vector so long or short that its squares leave the range of floats.
  static float cosine(const float* query, const std::vector<float>& vector) {
    double product = 0.0, squares = 0.0;
    for (std::size_t i = 0; i < vector.size(); ++i) {
      product += static_cast<double>(query[i]) * vector[i];
      squares += static_cast<double>(vector[i]) * vector[i];
    }
    return static_cast<float>(product / std::sqrt(squares));
  }

  // Of damaged vectors, too.
  static float finite(float score) { return std::isfinite(score) ? score : std::numeric_limits<float>::lowest(); }

  std::size_t dim_;
  Runs<Vectors> runs_;
  const std::int64_t* places_;
  std::size_t n_documents_;
  Score wanted_;
};

// The third stage of a search, if it has one.
struct Refinement {
  const Refiner* refiner = nullptr;
  const float* queries = nullptr;  // (n_queries, dim)
  std::size_t rows = 0;            // documents of each query to score again

  // Documents to keep of those that stage two scores.
  std::size_t kept(std::size_t top) const {
    return refiner == nullptr ? top : std::max(std::min(rows, refiner->n_documents()), top);
  }

  // Writes a query's best documents, which hold at most kept(results.top).
  void write(std::size_t q, TopK& best, const Results& results) const {
    if (refiner == nullptr) {
      results.write(q, best);
      return;
    }
    std::vector<Hit>& hits = best.kept();
    std::sort(hits.begin(), hits.end(), [](const Hit& a, const Hit& b) { return a.row < b.row; });
    refiner->rescore(queries + q * refiner->dim(), hits);
    TopK again(results.top);
    for (const Hit& hit : hits) again.push(hit.score, hit.row);
    results.write(q, again);
  }
};

}  // namespace compressae
