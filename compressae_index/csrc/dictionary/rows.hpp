// Vectors that callers bring: which of them have a direction, and that direction.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/dispatch.hpp"

namespace compressae {

// The largest magnitude, infinite or NaN where an entry is: compared as integers, in which order magnitudes are.
inline float largest_magnitude(const float* row, std::size_t dim) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < dim; ++i)
    largest = std::max(largest, static_cast<std::int32_t>(__builtin_bit_cast(std::uint32_t, row[i]) & 0x7fffffff));
  return __builtin_bit_cast(float, largest);
}

// The first of n rows that holds NaN or infinity, or nothing as large as `smallest`; n where there is none.
inline std::size_t first_without_direction(const float* rows, std::size_t n, std::size_t dim, float smallest) {
  std::size_t r = 0;
  for (; r < n; ++r) {
    const float largest = largest_magnitude(rows + r * dim, dim);
    if (!(largest >= smallest && std::isfinite(largest))) break;
  }
  return r;
}

// The row divided by its norm, or zeros where it is zero. Scaling it by its largest entry first keeps tiny and huge
// ones from under- and overflowing.
inline void write_direction(const float* row, std::size_t dim, float* direction) {
  const float largest = largest_magnitude(row, dim);
  if (largest == 0.0f) {
    std::fill_n(direction, dim, 0.0f);
    return;
  }
  for (std::size_t i = 0; i < dim; ++i) direction[i] = row[i] / largest;
  const float norm = std::sqrt(kernels().dot(direction, direction, dim));
  for (std::size_t i = 0; i < dim; ++i) direction[i] /= norm;
}

// The directions of n rows: (n, dim).
inline std::vector<float> directions(const float* rows, std::size_t n, std::size_t dim) {
  std::vector<float> all(n * dim);
  for (std::size_t r = 0; r < n; ++r) write_direction(rows + r * dim, dim, all.data() + r * dim);
  return all;
}

}  // namespace compressae
