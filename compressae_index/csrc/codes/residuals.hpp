// Residual codes: what the codes of documents leave out of their vectors, rounded to a few bits a dimension.
//
// A row is a scale in half precision and one or two planes of numbers, by groups of 16 dimensions, 0 behind the last:
//   bits             1     2     3     4     6
//   high plane       1     2     2     4     4    bits a dimension
//   low plane                    1           2
// A group takes 2 * width bytes of a plane. Dimension i of a group is in byte i % (2 * width), above i / (2 * width)
// others; where the width is 1, bits are in order. Entry i of the residual is scale * levels[number] / sqrt(dim), with
// the levels of Lloyd (1982) and Max (1960) for normal distributions of unit variance.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/half.hpp"
#include "base/huge.hpp"
#include "base/thread_pool.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// The positive levels of a number of bits, as multiples of `unit`; the negative ones mirror them.
struct ResidualLevels {
  std::vector<std::int8_t> positive;
  float unit;
};

inline bool is_residual_bits(std::size_t bits) { return (bits >= 1 && bits <= 4) || bits == 6; }

inline ResidualLevels residual_levels(std::size_t bits) {
  switch (bits) {
    case 1:
      return {{127}, 0.7978846f / 127};
    case 2:
      return {{38, 127}, 1.5104176f / 127};
    case 3:
      return {{14, 45, 79, 127}, 2.1519457f / 127};
    case 4:
      return {{6, 18, 31, 44, 58, 75, 96, 127}, 2.7325896f / 127};
    default:
      return {{1,  3,  6,  8,  10, 13, 15, 17, 20, 22, 24, 27, 30, 32, 35,  38,
               40, 43, 46, 49, 53, 56, 60, 64, 68, 73, 78, 84, 91, 99, 110, 127},
              3.7441013f / 127};
  }
}

class ResidualRows {
 public:
  // bits: 1 to 4, or 6.
  ResidualRows(std::size_t dim, std::size_t bits) : dim_(dim) {
    layout_.n_groups = (dim + kGroupDims - 1) / kGroupDims;
    layout_.high_bits = bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    layout_.low_bits = bits - layout_.high_bits;
    layout_.high_start = sizeof(std::uint16_t);
    layout_.low_start = layout_.high_start + 2 * layout_.high_bits * layout_.n_groups;
    layout_.row_bytes = layout_.low_start + 2 * layout_.low_bits * layout_.n_groups;
    const ResidualLevels levels = residual_levels(bits);
    const std::size_t half = levels.positive.size();
    for (std::size_t i = 0; i < half; ++i) {
      layout_.levels[half + i] = static_cast<std::uint8_t>(ProductRows::kAdded + levels.positive[i]);
      layout_.levels[half - 1 - i] = static_cast<std::uint8_t>(ProductRows::kAdded - levels.positive[i]);
    }
    levels_.lowest = static_cast<float>(layout_.levels[0] - ProductRows::kAdded);
    levels_.n_bounds = 2 * half - 1;
    for (std::size_t i = 0; i < levels_.n_bounds; ++i) {
      const float low = layout_.levels[i], high = layout_.levels[i + 1];
      levels_.bounds[i] = (low + high) / 2 - static_cast<float>(ProductRows::kAdded);
      levels_.rises[i] = high - low;
    }
    numbers_ = levels_;
    numbers_.lowest = 0.0f;
    std::fill_n(numbers_.rises, numbers_.n_bounds, 1.0f);
    unit_ = levels.unit / std::sqrt(static_cast<float>(dim));
  }

  std::size_t dim() const { return dim_; }
  std::size_t row_bytes() const { return layout_.row_bytes; }
  const ResidualLayout& layout() const { return layout_; }
  // The factor of a row's products with levels, which its scale leaves out.
  float unit() const { return unit_; }

  static std::uint16_t scale(const std::uint8_t* row) {
    std::uint16_t scale;
    std::memcpy(&scale, row, sizeof scale);
    return scale;
  }

  int level(const std::uint8_t* row, std::size_t i) const {
    return layout_.levels[number(row, i)] - ProductRows::kAdded;
  }

  void decode(const std::uint8_t* row, float* residual) const {
    const float factor = from_half(scale(row)) * unit_;
    for (std::size_t i = 0; i < dim_; ++i) residual[i] = factor * static_cast<float>(level(row, i));
  }

  // Encodes target - sum, where sum is what the code makes of the target: sum + residual gets the target's norm.
  // row: zeros.
  void encode(const float* target, const float* sum, std::uint8_t* row) const;

 private:
  static constexpr std::size_t kGroupDims = ResidualLayout::kGroupDims;

  std::size_t n_levels() const { return std::size_t{1} << (layout_.high_bits + layout_.low_bits); }

  std::size_t number(const std::uint8_t* row, std::size_t i) const {
    const std::size_t high = field(row + layout_.high_start, layout_.high_bits, i) << layout_.low_bits;
    return layout_.low_bits == 0 ? high : high | field(row + layout_.low_start, layout_.low_bits, i);
  }

  // The byte and the bit of number i in a plane.
  static std::pair<std::size_t, std::size_t> place(std::size_t width, std::size_t i) {
    const std::size_t group = i / kGroupDims * 2 * width, lane = i % kGroupDims;
    if (width == 1) return {group + lane / 8, lane % 8};
    return {group + lane % (2 * width), lane / (2 * width) * width};
  }

  static std::size_t field(const std::uint8_t* plane, std::size_t width, std::size_t i) {
    const auto [byte, bit] = place(width, i);
    return plane[byte] >> bit & ((1u << width) - 1);
  }

  static void put(std::uint8_t* plane, std::size_t width, std::size_t i, std::size_t field) {
    const auto [byte, bit] = place(width, i);
    plane[byte] = static_cast<std::uint8_t>(plane[byte] | (field & ((std::size_t{1} << width) - 1)) << bit);
  }

  // How well the levels next to residual / step fit.
  struct Fit {
    float step = 0.0f;
    double squares = 0.0, along_residual = 0.0, along_sum = 0.0;
  };
  // residual and levels: with room for whole kLanes.
  Fit fit(const float* residual, const float* sum, float step, float* levels) const;

  std::size_t padded() const { return (dim_ + kLanes - 1) / kLanes * kLanes; }

  std::size_t dim_;
  ResidualLayout layout_{};
  RoundingLevels levels_{}, numbers_{};  // levels less ProductRows::kAdded, and their numbers
  float unit_;
};

inline ResidualRows::Fit ResidualRows::fit(const float* residual, const float* sum, float step, float* levels) const {
  const Kernels& kernel = kernels();
  kernel.round_to_levels(residual, padded(), 1.0f / step, levels_, levels);
  return {step, kernel.dot(levels, levels, dim_), kernel.dot(levels, residual, dim_), kernel.dot(levels, sum, dim_)};
}

inline void ResidualRows::encode(const float* target, const float* sum, std::uint8_t* row) const {
  // Steps to try, relative to that of the levels: a row's entries are not quite normal.
  constexpr float kSteps[] = {0.88f, 0.94f, 1.0f, 1.06f, 1.12f};
  thread_local std::vector<float> residual, levels;
  residual.resize(padded()), levels.resize(padded());
  for (std::size_t i = 0; i < dim_; ++i) residual[i] = target[i] - sum[i];
  const Kernels& kernel = kernels();
  const float norm = std::sqrt(kernel.dot(residual.data(), residual.data(), dim_));
  if (!(norm * unit_ >= 0x1p-120f)) return;  // nothing is left out
  Fit best;
  double best_share = -1.0;
  for (const float step : kSteps) {
    const Fit fit = this->fit(residual.data(), sum, norm * unit_ * step, levels.data());
    const double share = fit.along_residual * fit.along_residual / fit.squares;  // of the squared norm
    if (share <= best_share) continue;
    best = fit, best_share = share;
  }
  // |sum + factor * levels| = |target|, next to the factor of least squares: the larger root, if there is one.
  const double least_squares = best.along_residual / best.squares;
  const double lacking = static_cast<double>(kernel.dot(target, target, dim_)) - kernel.dot(sum, sum, dim_);
  const double root = best.along_sum * best.along_sum + best.squares * lacking;
  double factor = root > 0.0 ? (std::sqrt(root) - best.along_sum) / best.squares : least_squares;
  factor = std::clamp(factor, 0.8 * least_squares, 1.25 * least_squares);
  const std::uint16_t scale = to_half(static_cast<float>(factor / unit_));
  std::memcpy(row, &scale, sizeof scale);
  kernel.round_to_levels(residual.data(), padded(), 1.0f / best.step, numbers_, levels.data());
  for (std::size_t i = 0; i < dim_; ++i) {
    const auto number = static_cast<std::size_t>(levels[i]);
    put(row + layout_.high_start, layout_.high_bits, i, number >> layout_.low_bits);
    if (layout_.low_bits != 0) put(row + layout_.low_start, layout_.low_bits, i, number);
  }
}

// Residual rows of targets (n, dim), whose codes are latents and values (n, k) over a dictionary (n_latents, dim):
// (n, row_bytes).
inline HugeVector<std::uint8_t> encode_residuals(const ResidualRows& form, const float* targets,
                                                 const std::uint16_t* latents, const float* values, std::size_t n,
                                                 std::size_t k, const float* dictionary, std::size_t num_threads) {
  HugeVector<std::uint8_t> rows(n * form.row_bytes());
  const std::size_t dim = form.dim();
  for_each_row(n, num_threads, [&](std::size_t r) {
    thread_local std::vector<float> sum;
    sum.resize(dim);
    kernels().combine(dictionary, dim, latents + r * k, values + r * k, k, sum.data());
    form.encode(targets + r * dim, sum.data(), rows.data() + r * form.row_bytes());
  });
  return rows;
}

// The other way: (n, dim).
inline std::vector<float> decode_residuals(const ResidualRows& form, const std::uint8_t* rows, std::size_t n,
                                           std::size_t num_threads) {
  std::vector<float> residuals(n * form.dim());
  for_each_row(n, num_threads,
               [&](std::size_t r) { form.decode(rows + r * form.row_bytes(), residuals.data() + r * form.dim()); });
  return residuals;
}

}  // namespace compressae
