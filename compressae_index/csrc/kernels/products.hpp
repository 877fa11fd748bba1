// Products with rows of bytes, as projections and pursuit take them.
#pragma once

#include "kernels/byte_products.hpp"
#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

namespace plain {

inline void add_byte_rows(const std::int8_t* const* rows, const float* weights, std::size_t n_rows, std::size_t count,
                          float* y) {
  for (std::size_t begin = 0; begin < count; begin += kBlock)
    for (std::size_t r = 0; r < n_rows; ++r) {
#pragma omp simd
      for (std::size_t i = 0; i < kBlock; ++i) y[begin + i] += weights[r] * static_cast<float>(rows[r][begin + i]);
    }
}

// sums[p][i] = <plane p, row i> for the rows of a block, whose entries begin at `row`.
template <std::size_t Planes>
void block_sums(const std::uint8_t* row, const std::int8_t* plane, std::size_t steps, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kStep = ProductRows::kStep;
  for (std::size_t p = 0; p < Planes; ++p)
    for (std::size_t first = 0; first < kBlock; first += 16) {
      std::int32_t lanes[16] = {};
      for (std::size_t step = 0; step < steps; ++step) {
        const std::uint8_t* rows = row + (first / 16 * steps + step) * 16 * kStep;
        const std::int8_t* entries = plane + (p * steps + step) * kStep;
#pragma omp simd
        for (std::size_t i = 0; i < 16; ++i)
          for (std::size_t e = 0; e < kStep; ++e) lanes[i] += rows[kStep * i + e] * entries[e];
      }
      __builtin_memcpy(sums[p] + first, lanes, sizeof lanes);
    }
}

}  // namespace plain

#if defined(COMPRESSAE_PLAIN)

using plain::add_byte_rows;
using plain::block_sums;

#else

// A block of y stays in registers while all rows pass by.
void add_byte_rows(const std::int8_t* const* rows, const float* weights, std::size_t n_rows, std::size_t count,
                   float* y) {
  // Blocks between the one in use and the one to fetch: many rows at once are more streams than the hardware follows.
  constexpr std::size_t kBlocksAhead = 4;
  constexpr std::size_t kVectors = kBlock / kFloats;
  // With shorter vectors a block takes so many instructions that another one for each row costs more than it saves.
  constexpr bool kFetches = kVectors == 4;
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    Floats sums[kVectors];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kVectors; ++i) sums[i] = load<Floats>(y + begin + kFloats * i);
    for (std::size_t r = 0; r < n_rows; ++r) {
      const std::int8_t* row = rows[r] + begin;
      if (kFetches) __builtin_prefetch(row + kBlocksAhead * kBlock);
      const Floats weight = repeated(weights[r]);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < kVectors; ++i) sums[i] = multiply_add(weight, floats_of(row + kFloats * i), sums[i]);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kVectors; ++i) store(y + begin + kFloats * i, sums[i]);
  }
}

// sums[p][i] = <plane p, row i> for the rows of a block, whose entries begin at `row`. Several vectors
// of rows, and all planes: each load serves several products.
template <std::size_t Planes>
void block_sums(const std::uint8_t* row, const std::int8_t* plane, std::size_t steps, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kStep = ProductRows::kStep;
  // Bytes between the entries in use and those to fetch: rows are read at several places at once.
  constexpr std::size_t kRowsAhead = 512;
  // As many as fit in registers next to the operands: there are 32 with AVX-512, 16 with AVX2; NEON's 32 are short.
  constexpr std::size_t kVectors = kInt32s == 16 ? 4 : 2;
  for (std::size_t first = 0; first < kBlock; first += kVectors * kInt32s) {
    Int32s lanes[Planes][kVectors] = {};
    for (std::size_t step = 0; step < steps; ++step) {
      Int32s rows[kVectors];
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) {
        const std::size_t i = first + v * kInt32s;
        const std::uint8_t* entries = row + ((i / 16 * steps + step) * 16 + i % 16) * kStep;
        __builtin_prefetch(entries + kRowsAhead);
        rows[v] = load<Int32s>(entries);
      }
#pragma GCC unroll 8
      for (std::size_t p = 0; p < Planes; ++p) {
        const auto entries = load<std::int32_t>(plane + (p * steps + step) * kStep);
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kVectors; ++v) lanes[p][v] = add_step(lanes[p][v], rows[v], repeated(entries));
      }
    }
    // One by one: copied as a whole, the sums would be in memory from the start.
#pragma GCC unroll 8
    for (std::size_t p = 0; p < Planes; ++p)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) store(sums[p] + first + v * kInt32s, lanes[p][v]);
  }
}

#endif

// Products of `Queries` queries from `first` on with the first n_rows rows of a block.
template <std::size_t Planes, std::size_t Queries>
void multiply_block(const ProductRows& rows, std::size_t block, std::size_t n_rows, const ProductQueries& queries,
                    std::size_t first, float* products, std::size_t stride) {
  const std::size_t length = ProductRows::kStep * rows.steps;
  alignas(64) std::int32_t sums[Queries * Planes][kBlock];
  block_sums<Queries * Planes>(rows.entries + block * kBlock * length, queries.entries + first * Planes * length,
                               rows.steps, sums);
  for (std::size_t q = 0; q < Queries; ++q) {
    float* columns = products + (first + q) * stride + block * kBlock;
    const float* scales = queries.scales + (first + q) * Planes;
    const std::int32_t* query_sums = queries.sums + (first + q) * Planes;
#pragma omp simd
    for (std::size_t i = 0; i < n_rows; ++i) {
      float product = 0.0f;
      // Rows hold round(entry / scale) + kAdded, as the fastest instruction takes one side unsigned:
      // sum of (row - kAdded) * query = sum of row * query - kAdded * sum of query.
      for (std::size_t p = 0; p < Planes; ++p)
        product += static_cast<float>(sums[q * Planes + p][i] - ProductRows::kAdded * query_sums[p]) * scales[p];
      columns[i] = product * rows.scales[block * kBlock + i];
    }
  }
}

// A block of rows stays in the first-level cache while all queries pass by.
template <std::size_t Planes>
void multiply_all(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                  std::size_t stride) {
  constexpr std::size_t kTile = 6 / Planes;
  for (std::size_t block = 0; block < rows.n_blocks; ++block) {
    const std::size_t left = n_rows - block * kBlock, count = left < kBlock ? left : kBlock;
    std::size_t q = 0;
    for (; q + kTile <= queries.n; q += kTile)
      multiply_block<Planes, kTile>(rows, block, count, queries, q, products, stride);
    for (; q < queries.n; ++q) multiply_block<Planes, 1>(rows, block, count, queries, q, products, stride);
  }
}

void multiply(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
              std::size_t stride) {
  if (queries.n_planes == 1)
    multiply_all<1>(rows, n_rows, queries, products, stride);
  else
    multiply_all<3>(rows, n_rows, queries, products, stride);
}

}  // namespace
}  // namespace compressae
