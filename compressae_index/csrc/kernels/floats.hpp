// Products and sums of rows of floats.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

void add_rows(const float* rows, std::size_t stride, const float* weights, std::size_t n_rows, std::size_t count,
              float* y) {
  for (std::size_t begin = 0; begin < count; begin += kLanes) {
    float sums[4][kLanes] = {};
    std::size_t r = 0;
    // Four sums that do not wait for each other.
    for (; r + 4 <= n_rows; r += 4)
      for (std::size_t s = 0; s < 4; ++s) {
#pragma omp simd
        for (std::size_t i = 0; i < kLanes; ++i) sums[s][i] += weights[r + s] * rows[(r + s) * stride + begin + i];
      }
    for (; r < n_rows; ++r) {
#pragma omp simd
      for (std::size_t i = 0; i < kLanes; ++i) sums[0][i] += weights[r] * rows[r * stride + begin + i];
    }
#pragma omp simd
    for (std::size_t i = 0; i < kLanes; ++i) y[begin + i] += (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
  }
}

// Of kLanes * Vectors columns from `begin` on; sums stay in registers.
template <std::size_t Vectors>
void combine_columns(const float* rows, std::size_t count, std::size_t begin, const std::uint16_t* numbers,
                     const float* weights, std::size_t n_rows, float* y) {
  float sums[Vectors][kLanes] = {};
  for (std::size_t r = 0; r < n_rows; ++r) {
    const float* row = rows + numbers[r] * count + begin;
#pragma GCC unroll 4
    for (std::size_t v = 0; v < Vectors; ++v) {
#pragma omp simd
      for (std::size_t i = 0; i < kLanes; ++i) sums[v][i] += weights[r] * row[v * kLanes + i];
    }
  }
#pragma GCC unroll 4
  for (std::size_t v = 0; v < Vectors; ++v) __builtin_memcpy(y + begin + v * kLanes, sums[v], sizeof sums[v]);
}

void combine(const float* rows, std::size_t count, const std::uint16_t* numbers, const float* weights,
             std::size_t n_rows, float* y) {
  std::size_t begin = 0;
  for (; begin + 4 * kLanes <= count; begin += 4 * kLanes)
    combine_columns<4>(rows, count, begin, numbers, weights, n_rows, y);
  for (; begin + kLanes <= count; begin += kLanes) combine_columns<1>(rows, count, begin, numbers, weights, n_rows, y);
  for (; begin < count; ++begin) {
    float sum = 0.0f;
    for (std::size_t r = 0; r < n_rows; ++r) sum += weights[r] * rows[numbers[r] * count + begin];
    y[begin] = sum;
  }
}

#if defined(__AVX2__)

// Of `Vectors` vectors; they and their sums stay in registers while bounds pass by.
template <std::size_t Vectors>
void round_vectors(const float* x, float factor, const RoundingLevels& levels, float* rounded) {
  Floats scaled[Vectors], sums[Vectors];
#pragma GCC unroll 4
  for (std::size_t v = 0; v < Vectors; ++v) {
    scaled[v] = load<Floats>(x + v * kFloats) * factor;
    sums[v] = repeated(levels.lowest);
  }
  for (std::size_t l = 0; l < levels.n_bounds; ++l) {
    const Floats bound = repeated(levels.bounds[l]), rise = repeated(levels.rises[l]);
#pragma GCC unroll 4
    for (std::size_t v = 0; v < Vectors; ++v) sums[v] += scaled[v] > bound ? rise : Floats{};
  }
#pragma GCC unroll 4
  for (std::size_t v = 0; v < Vectors; ++v) store(rounded + v * kFloats, sums[v]);
}

void round_to_levels(const float* x, std::size_t count, float factor, const RoundingLevels& levels, float* rounded) {
  std::size_t begin = 0;
  for (; begin + 4 * kFloats <= count; begin += 4 * kFloats)
    round_vectors<4>(x + begin, factor, levels, rounded + begin);
  for (; begin < count; begin += kFloats) round_vectors<1>(x + begin, factor, levels, rounded + begin);
}

#else

void round_to_levels(const float* x, std::size_t count, float factor, const RoundingLevels& levels, float* rounded) {
  for (std::size_t i = 0; i < count; ++i) rounded[i] = levels.lowest;
  for (std::size_t l = 0; l < levels.n_bounds; ++l) {
#pragma omp simd
    for (std::size_t i = 0; i < count; ++i) rounded[i] += x[i] * factor > levels.bounds[l] ? levels.rises[l] : 0.0f;
  }
}

#endif

namespace plain {

inline float dot(const float* x, const float* y, std::size_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace plain

#if defined(__AVX512BW__)

float dot(const float* x, const float* y, std::size_t count) {
  Floats sums{};
  std::size_t i = 0;
  for (; i + kFloats <= count; i += kFloats) sums = multiply_add(load<Floats>(x + i), load<Floats>(y + i), sums);
  return sum_of(multiply_add(load_first(x + i, count - i), load_first(y + i, count - i), sums));
}

#else
using plain::dot;
#endif

#if defined(__AVX2__)

// Each load serves several products, and the sums do not wait for each other.
template <std::size_t Rows, std::size_t Others>
void tile_dots(const float* const* rows, const float* const* others, std::size_t count, float* products,
               std::size_t stride) {
  Floats sums[Rows][Others] = {};
  const auto add = [&](auto loaded) {
    Floats other[Others];
#pragma GCC unroll 4
    for (std::size_t j = 0; j < Others; ++j) other[j] = loaded(others[j]);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < Rows; ++i) {
      const Floats row = loaded(rows[i]);
#pragma GCC unroll 4
      for (std::size_t j = 0; j < Others; ++j) sums[i][j] = multiply_add(row, other[j], sums[i][j]);
    }
  };
  std::size_t at = 0;
  for (; at + kFloats <= count; at += kFloats) add([at](const float* from) { return load<Floats>(from + at); });
  if (at < count) add([at, count](const float* from) { return load_first(from + at, count - at); });
#pragma GCC unroll 4
  for (std::size_t i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (std::size_t j = 0; j < Others; ++j) products[i * stride + j] = sum_of(sums[i][j]);
}

#endif

void dots(const float* const* rows, std::size_t n_rows, const float* const* others, std::size_t n_others,
          std::size_t count, float* products, std::size_t stride) {
  std::size_t i = 0;
#if defined(__AVX2__)
  // As many sums as there are registers for.
  constexpr std::size_t kRows = sizeof(Floats) == 64 ? 4 : 2;
  for (; i + kRows <= n_rows; i += kRows) {
    std::size_t j = 0;
    for (; j + 4 <= n_others; j += 4)
      tile_dots<kRows, 4>(rows + i, others + j, count, products + i * stride + j, stride);
    for (; j < n_others; ++j) tile_dots<kRows, 1>(rows + i, others + j, count, products + i * stride + j, stride);
  }
#endif
  for (; i < n_rows; ++i)
    for (std::size_t j = 0; j < n_others; ++j) products[i * stride + j] = dot(rows[i], others[j], count);
}

}  // namespace
}  // namespace compressae
