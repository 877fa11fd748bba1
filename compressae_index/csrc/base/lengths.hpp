// Norms of vectors, for Euclidean distances: |q - x|^2 / 2 is |q|^2 / 2 - q.x + |x|^2 / 2, and a code gives q.x alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/half.hpp"

namespace compressae {

// The norms of some documents (half_square in half.hpp), borrowed; none where no distances are wanted.
class Lengths {
 public:
  Lengths() = default;
  Lengths(const std::uint16_t* norms, std::size_t n) : norms_(norms) {
    std::uint16_t least = std::numeric_limits<std::uint16_t>::max(), most = 0;
    for (std::size_t i = 0; i < n; ++i) least = std::min(least, norms[i]), most = std::max(most, norms[i]);
    smallest_ = half_square(std::min(least, most)), largest_ = half_square(most);
  }

  bool are_kept() const { return norms_ != nullptr; }
  const std::uint16_t* norms() const { return norms_; }
  float half_square_of(std::size_t document) const { return half_square(norms_[document]); }
  // Of all documents.
  float smallest() const { return smallest_; }
  float largest() const { return largest_; }

 private:
  const std::uint16_t* norms_ = nullptr;
  float smallest_ = 0.0f, largest_ = 0.0f;
};

}  // namespace compressae
