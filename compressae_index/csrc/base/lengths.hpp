// Norms of vectors, for Euclidean distances: |q - x|^2 / 2 is |q|^2 / 2 - q.x + |x|^2 / 2, and a code gives q.x alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/half.hpp"

namespace compressae {

// The norms of some documents (length_of in half.hpp), borrowed; none where no distances are wanted.
class Lengths {
 public:
  Lengths() = default;
  Lengths(const std::uint16_t* norms, std::size_t n) : norms_(norms) {
    std::vector<std::size_t> counts(std::size_t{1} << 16);
    for (std::size_t i = 0; i < n; ++i) ++counts[norms[i]];
    range_.include(counts, n);
  }

  // The smallest and the largest norm, and one that nine of ten do not exceed.
  struct Range {
    float smallest = std::numeric_limits<float>::infinity(), largest = 0.0f, common = 0.0f;

    void include(const Range& other) {
      smallest = std::min(smallest, other.smallest);
      largest = std::max(largest, other.largest);
      common = std::max(common, other.common);
    }
    void include(const std::vector<std::size_t>& counts, std::size_t n) {
      for (std::size_t norm = 0, below = 0; norm < counts.size(); ++norm) {
        if (counts[norm] == 0) continue;
        const float length = length_of(static_cast<std::uint16_t>(norm));
        smallest = std::min(smallest, length);
        largest = length;
        if (10 * below <= 9 * n) common = length;
        below += counts[norm];
      }
    }
    // If they do not, distances have the order of directions.
    bool differ() const { return smallest < largest; }
  };

  bool are_kept() const { return norms_ != nullptr; }
  const std::uint16_t* norms() const { return norms_; }
  float half_square_of(std::size_t document) const { return half_square(norms_[document]); }
  const Range& range() const { return range_; }

 private:
  const std::uint16_t* norms_ = nullptr;
  Range range_;
};

}  // namespace compressae
