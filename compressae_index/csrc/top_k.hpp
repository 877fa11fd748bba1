// Selection of the best-scored documents.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace compressae {

struct Hit {
  float score;
  std::int64_t row;
};

// Higher score first; a tie goes to the lower row.
inline bool better(const Hit& a, const Hit& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
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
    if (hits_.size() == capacity_) cut();
  }

  // Writes `top` entries, padded with row -1 and score -inf.
  void write(float* scores, std::int64_t* rows) {
    if (hits_.size() > top_) cut();
    std::sort(hits_.begin(), hits_.end(), better);
    for (std::size_t i = 0; i < top_; ++i) {
      const bool found = i < hits_.size();
      scores[i] = found ? hits_[i].score : -std::numeric_limits<float>::infinity();
      rows[i] = found ? hits_[i].row : -1;
    }
  }

 private:
  void cut() {
    const auto nth = hits_.begin() + static_cast<std::ptrdiff_t>(top_ - 1);
    std::nth_element(hits_.begin(), nth, hits_.end(), better);
    hits_.resize(top_);
    threshold_ = hits_.back().score;
  }

  std::size_t top_;
  std::size_t capacity_;
  std::vector<Hit> hits_;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

// A filter: one bit a document, the lowest bit of a byte first; no bitmap allows all.
struct Allowed {
  const std::uint8_t* bitmap = nullptr;

  bool all() const { return bitmap == nullptr; }
  bool operator()(std::size_t row) const { return bitmap == nullptr || (bitmap[row >> 3] >> (row & 7) & 1); }
};

}  // namespace compressae
