// Selection of the best-scored documents.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace compressae {

template <typename Score>
struct ScoredRow {
  Score score;
  std::int64_t row;
};

using Hit = ScoredRow<float>;
using Candidate = ScoredRow<std::int16_t>;

// Higher score first; a tie goes to the lower row.
template <typename Score>
bool better(const ScoredRow<Score>& a, const ScoredRow<Score>& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

// Leaves the `top` best, in any order.
template <typename Score>
void keep_best(std::vector<ScoredRow<Score>>& rows, std::size_t top) {
  if (rows.size() <= top) return;
  std::nth_element(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(top), rows.end(), better<Score>);
  rows.resize(top);
}

// Keeps the `top` best hits of a stream. A buffer that is cut back by nth_element whenever it is full costs
// the same whether 10 or 1,000 are asked for, where a heap would slow down with their number.
class TopK {
 public:
  explicit TopK(std::size_t top) : top_(top), capacity_(top + std::max<std::size_t>(top, 1024)) {
    hits_.reserve(capacity_);
  }

  // Only scores above this can still enter, as long as rows arrive in ascending order.
  float threshold() const { return threshold_; }

  void push(float score, std::int64_t row) {
    hits_.push_back({score, row});
    if (hits_.size() == capacity_) {
      keep_best(hits_, top_);
      threshold_ = std::max_element(hits_.begin(), hits_.end(), better<float>)->score;
    }
  }

  // What another kept: of the same documents, or of others.
  void merge(const TopK& other) {
    for (const Hit& hit : other.hits_) push(hit.score, hit.row);
  }

  // Writes `top` entries, padded with row -1 and score -inf.
  void write(float* scores, std::int64_t* rows) {
    keep_best(hits_, top_);
    std::sort(hits_.begin(), hits_.end(), better<float>);
    for (std::size_t i = 0; i < top_; ++i) {
      const bool found = i < hits_.size();
      scores[i] = found ? hits_[i].score : -std::numeric_limits<float>::infinity();
      rows[i] = found ? hits_[i].row : -1;
    }
  }

 private:
  std::size_t top_;
  std::size_t capacity_;
  std::vector<Hit> hits_;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

// The same for 16-bit scores, which can be counted: the threshold rises with every few candidates, so that fewer are
// kept, and nothing is sorted on the way.
class CandidateSelection {
 public:
  // Candidates score above `floor`.
  void begin(std::size_t top, std::int16_t floor) {
    top_ = top;
    bucket_ = bucket_of(floor);
    above_ = 0;
    candidates_.clear();
    std::fill(counts_.begin(), counts_.end(), 0u);
    threshold_ = floor;
  }

  // Only scores above this can still enter, as long as rows arrive in ascending order.
  std::int16_t threshold() const { return threshold_; }

  void push(const std::int16_t* scores, const std::uint16_t* positions, std::size_t count, std::int64_t first_row) {
    for (std::size_t i = 0; i < count; ++i) {
      candidates_.push_back({scores[i], first_row + positions[i]});
      ++counts_[bucket_of(scores[i])];
    }
    above_ += count;
    // Whole buckets are given up while as many as are wanted lie above.
    while (above_ - counts_[bucket_] >= top_) {
      above_ -= counts_[bucket_++];
      threshold_ = static_cast<std::int16_t>(static_cast<std::int32_t>(bucket_ << kBits) - 32769);
    }
    // Keeps the buffer small where rows come in ascending order of their scores.
    if (candidates_.size() > 8 * top_ + 4096) drop();
  }

  // The `top` best so far, in any order.
  std::vector<Candidate>& best() {
    drop();
    keep_best(candidates_, top_);
    return candidates_;
  }

 private:
  // Scores are counted in buckets of 8: few enough for the first-level cache, and fine enough.
  static constexpr std::size_t kBits = 3;

  static std::size_t bucket_of(std::int16_t score) {
    return static_cast<std::size_t>(static_cast<std::int32_t>(score) + 32768) >> kBits;
  }

  void drop() {
    std::erase_if(candidates_, [this](const Candidate& candidate) { return candidate.score <= threshold_; });
  }

  std::size_t top_ = 0;
  std::size_t bucket_ = 0;  // the lowest that candidates may still be in
  std::size_t above_ = 0;   // candidates in this bucket and above
  std::int16_t threshold_ = 0;
  std::vector<Candidate> candidates_;
  std::vector<std::uint32_t> counts_ = std::vector<std::uint32_t>(65536 >> kBits);
};

// A filter: one bit a document, the lowest bit of a byte first; no bitmap allows all.
struct Allowed {
  const std::uint8_t* bitmap = nullptr;

  bool all() const { return bitmap == nullptr; }
  bool operator()(std::size_t row) const { return bitmap == nullptr || (bitmap[row >> 3] >> (row & 7) & 1); }
};

}  // namespace compressae
