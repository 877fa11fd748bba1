// Rounding of values to levels, each on its own or such that the reconstruction of a row moves little.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/half.hpp"
#include "base/thread_pool.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Values as level indices: that of the level nearest to |value| / scale, below a sign bit. Scales carry the mark of
// short rows.
class Quantizer {
 public:
  Quantizer(const float* levels, std::size_t n_levels) : levels_(levels), n_levels_(n_levels) {
    for (std::size_t i = 0; i + 1 < n_levels; ++i) middles_.push_back((levels[i] + levels[i + 1]) / 2);
  }

  std::uint8_t level_index(float value, std::uint16_t scale) const {
    const bool is_short = scale & 0x8000;
    const float size = from_half(scale & 0x7fff);
    const float magnitude = size > 0.0f ? std::fabs(value) / size : 0.0f;
    std::size_t level =
        static_cast<std::size_t>(std::upper_bound(middles_.begin(), middles_.end(), magnitude) - middles_.begin());
    // A short row has 0 in place of the first level.
    if (is_short && level <= 1) level = magnitude > levels_[1] / 2 ? 1 : 0;
    const bool negative = std::signbit(value) && !(is_short && level == 0);
    return static_cast<std::uint8_t>(level + (negative ? n_levels_ : 0));
  }

  // The value of a level index.
  float value(std::uint8_t level_index, std::uint16_t scale) const {
    const std::size_t level = level_index % n_levels_;
    if (scale & 0x8000 && level == 0) return 0.0f;
    const float magnitude = levels_[level] * from_half(scale & 0x7fff);
    return level_index >= n_levels_ ? -magnitude : magnitude;
  }

 private:
  const float* levels_;
  std::size_t n_levels_;
  std::vector<float> middles_;
};

// Rounds values one after the other, and each time moves those that are left so as to make up for what rounding did
// to the reconstruction (Babai, 1986: the nearest plane). Codes over a dictionary of unit rows.
class PlaneRounder {
 public:
  PlaneRounder(const Quantizer& quantizer, const float* dictionary, std::size_t dim, std::size_t k)
      : quantizer_(quantizer),
        dictionary_(dictionary),
        dim_(dim),
        stride_((k + kLanes - 1) / kLanes * kLanes),
        order_(k),
        atoms_(k),
        factor_(k * stride_),
        weights_(k),
        errors_(stride_) {}

  void quantize(const std::uint16_t* latents, const float* values, std::size_t k, std::uint16_t scale,
                std::uint8_t* level_indices) {
    // The largest come last here and are rounded first: the levels of small values, which make up, lie closer.
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::sort(order_.begin(), order_.end(), [values](std::size_t a, std::size_t b) {
      const float x = std::fabs(values[a]), y = std::fabs(values[b]);
      return x < y || (x == y && a < b);
    });
    for (std::size_t i = 0; i < k; ++i) atoms_[i] = dictionary_ + latents[order_[i]] * dim_;
    factorize(k);
    std::fill(errors_.begin(), errors_.end(), 0.0f);
    for (std::size_t i = k; i-- > 0;) {
      const float value = values[order_[i]];
      const float* row = factor_.data() + i * stride_;
      // A zero stays one.
      const float moved = value + kernel_.dot(row + i + 1, errors_.data() + i + 1, k - i - 1) / row[i];
      const float wanted = value == 0.0f ? value : moved;
      level_indices[order_[i]] = quantizer_.level_index(wanted, scale);
      errors_[i] = wanted == 0.0f ? 0.0f : value - quantizer_.value(level_indices[order_[i]], scale);
    }
  }

 private:
  // The upper Cholesky factor of the atoms' Gram matrix, row by row.
  void factorize(std::size_t k) {
    for (std::size_t i = 0; i < k; i += 4) {
      const std::size_t rows = std::min<std::size_t>(4, k - i);
      kernel_.dots(atoms_.data() + i, rows, atoms_.data() + i, k - i, dim_, factor_.data() + i * stride_ + i, stride_);
    }
    for (std::size_t i = 0; i < k; ++i) {
      float* row = factor_.data() + i * stride_;
      for (std::size_t j = 0; j < i; ++j) weights_[j] = -factor_[j * stride_ + i];
      const std::size_t first = i / kLanes * kLanes;
      kernel_.add_rows(factor_.data() + first, stride_, weights_.data(), i, stride_ - first, row + first);
      if (row[i] > kSmallestPivot) {
        const float inverse = 1.0f / std::sqrt(row[i]);
        for (std::size_t j = i; j < k; ++j) row[j] *= inverse;
      } else {  // it depends on the others, and makes up for nothing
        std::fill(row + i, row + k, 0.0f);
        row[i] = 1.0f;
      }
    }
  }

  // Of a unit atom, the share outside of the span of the others; below this, float32 solves nothing.
  static constexpr float kSmallestPivot = 1e-3f;

  const Kernels& kernel_ = kernels();
  const Quantizer& quantizer_;
  const float* dictionary_;
  std::size_t dim_;
  std::size_t stride_;
  std::vector<std::size_t> order_;
  std::vector<const float*> atoms_;
  std::vector<float> factor_;  // (k, stride), on and above the diagonal
  std::vector<float> weights_;
  std::vector<float> errors_;
};

// Level indices (n, k) of values relative to scales (n), each value on its own.
inline std::vector<std::uint8_t> quantize(const Quantizer& quantizer, const float* values, const std::uint16_t* scales,
                                          std::size_t n, std::size_t k, std::size_t num_threads) {
  std::vector<std::uint8_t> level_indices(n * k);
  for_each_row(n, num_threads, [&](std::size_t row) {
    for (std::size_t i = row * k; i < (row + 1) * k; ++i)
      level_indices[i] = quantizer.level_index(values[i], scales[row]);
  });
  return level_indices;
}

// The same by a PlaneRounder; latents: (n, k), below the rows of the dictionary.
inline std::vector<std::uint8_t> quantize_by_planes(const Quantizer& quantizer, const float* dictionary,
                                                    std::size_t dim, const std::uint16_t* latents, const float* values,
                                                    const std::uint16_t* scales, std::size_t n, std::size_t k,
                                                    std::size_t num_threads) {
  std::vector<std::uint8_t> level_indices(n * k);
  for_each_run(n, kTaskRows, num_threads, [&](std::size_t begin, std::size_t end) {
    PlaneRounder rounder(quantizer, dictionary, dim, k);
    for (std::size_t row = begin; row < end; ++row)
      rounder.quantize(latents + row * k, values + row * k, k, scales[row], level_indices.data() + row * k);
  });
  return level_indices;
}

}  // namespace compressae
