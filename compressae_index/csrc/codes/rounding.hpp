// Rounding of a code's values such that its reconstruction moves little.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "codes/packed.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

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
                std::uint8_t* codes) {
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
      codes[order_[i]] = quantizer_.code(wanted, scale);
      errors_[i] = wanted == 0.0f ? 0.0f : value - quantizer_.value(codes[order_[i]], scale);
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

}  // namespace compressae
