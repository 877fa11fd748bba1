// Products with rows of bytes, as projections and pursuit take them.
#pragma once

#include "kernels/byte_products.hpp"
#include "kernels/kernels.hpp"
#include "kernels/products_amx.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

namespace plain {

inline void interleave(const std::uint8_t* const* rows, std::size_t count, std::uint8_t* entries) {
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t r = 0; r < InterleavedRows::kRows; ++r)
      entries[InterleavedRows::kRows * i + r] = rows[r][InterleavedRows::place(i)];
}

// sums[p][i] = the sum of weights of plane p times entries of a block's columns, the first of which is at `entries`,
// and their surplus; those of the next four rows are `stride` bytes behind.
inline void weighted_sums(const std::uint8_t* entries, std::size_t stride, const std::int8_t* weights,
                          std::size_t n_fours, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kRows = InterleavedRows::kRows;
  for (std::size_t p = 0; p < 2; ++p)
    for (std::size_t i = 0; i < kBlock; ++i) {
      sums[p][i] = 0;
      for (std::size_t f = 0; f < n_fours; ++f)
        for (std::size_t r = 0; r < kRows; ++r)
          sums[p][i] += entries[f * stride + kRows * i + r] * weights[(p * n_fours + f) * kRows + r];
    }
}

inline void byte_dots(const std::uint8_t* const* rows, std::size_t n_rows, const std::int8_t* query, std::size_t length,
                      std::int32_t surplus, std::int32_t* sums) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    std::int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < length; ++i) sum += rows[r][i] * query[i];
    sums[r] = sum - surplus;
  }
}

// sums[p][i] = <plane p, row i> and the plane's surplus, for the rows of a block, whose entries begin at `row`.
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

// The same of the upper halves of rows.
template <std::size_t Planes>
void upper_sums(const std::uint8_t* row, const std::int8_t* plane, std::size_t steps, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kStep = ProductRows::kStep;
  for (std::size_t p = 0; p < Planes; ++p)
    for (std::size_t i = 0; i < kBlock; ++i) {
      sums[p][i] = 0;
      for (std::size_t step = 0; step < steps; ++step)
        for (std::size_t e = 0; e < kStep; ++e) {
          const std::uint8_t two = row[((i / 16 * steps + step) / 2 * 16 + i % 16) * kStep + e];
          const std::int32_t upper = step % 2 == 0 ? (two & 15) << 4 : two & 0xf0;
          sums[p][i] += (upper | UpperRows::kMiddle) * plane[(p * steps + step) * kStep + e];
        }
    }
}

}  // namespace plain

#if defined(COMPRESSAE_PLAIN)

using plain::block_sums;
using plain::byte_dots;
using plain::interleave;
using plain::upper_sums;
using plain::weighted_sums;

constexpr std::size_t kPlanes = 6;

#else

// Planes of queries and vectors of rows whose products are summed up together: the sums fit in registers next to the
// operands. There are 32 with AVX-512, 16 with AVX2; NEON's 32 are short.
constexpr std::size_t kPlanes = kInt32s == 8 ? 2 : 6;
constexpr std::size_t kVectors = kInt32s == 4 ? 2 : 4;

void interleave(const std::uint8_t* const* rows, std::size_t count, std::uint8_t* entries) {
  constexpr std::size_t kBytes = sizeof(Int32s);
  for (std::size_t begin = 0; begin < count; begin += kBlock)
    for (std::size_t at = 0; at < kBlock; at += kBytes) {
      Int32s bytes[InterleavedRows::kRows];
#pragma GCC unroll 4
      for (std::size_t r = 0; r < InterleavedRows::kRows; ++r) bytes[r] = load<Int32s>(rows[r] + begin + at);
      interleave_bytes(bytes);
    // Of each 16 bytes, four columns are in each of these.
#pragma GCC unroll 4
      for (std::size_t v = 0; v < 4; ++v) store(entries + InterleavedRows::kRows * (begin + 16 * v + at / 4), bytes[v]);
    }
}

void weighted_sums(const std::uint8_t* entries, std::size_t stride, const std::int8_t* weights, std::size_t n_fours,
                   std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kRows = InterleavedRows::kRows;
  for (std::size_t first = 0; first < kBlock; first += kVectors * kInt32s) {
    Int32s lanes[2][kVectors] = {};
    for (std::size_t f = 0; f < n_fours; ++f) {
      const Int32s whole = repeated(load<std::int32_t>(weights + kRows * f));
      const Int32s rest = repeated(load<std::int32_t>(weights + kRows * (n_fours + f)));
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) {
        const auto four = load<Int32s>(entries + f * stride + kRows * (first + v * kInt32s));
        lanes[0][v] = add_step(lanes[0][v], four, whole);
        lanes[1][v] = add_step(lanes[1][v], four, rest);
      }
    }
#pragma GCC unroll 2
    for (std::size_t p = 0; p < 2; ++p)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) store(sums[p] + first + v * kInt32s, lanes[p][v]);
  }
}

// Several vectors of rows, and all planes: each load serves several products.
template <std::size_t Planes>
void block_sums(const std::uint8_t* row, const std::int8_t* plane, std::size_t steps, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kStep = ProductRows::kStep;
  // Fetched are the entries that are in use next time: rows are read at several places at once, each of which ends
  // before the hardware has followed it for long.
  const std::size_t ahead = kVectors * kInt32s * kStep * steps;
  for (std::size_t first = 0; first < kBlock; first += kVectors * kInt32s) {
    Int32s lanes[Planes][kVectors] = {};
    for (std::size_t step = 0; step < steps; ++step) {
      Int32s rows[kVectors];
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) {
        const std::size_t i = first + v * kInt32s;
        const std::uint8_t* entries = row + ((i / 16 * steps + step) * 16 + i % 16) * kStep;
        __builtin_prefetch(entries + ahead);
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

// The same of the upper halves of rows: each load serves two steps.
template <std::size_t Planes>
void upper_sums(const std::uint8_t* row, const std::int8_t* plane, std::size_t steps, std::int32_t (*sums)[kBlock]) {
  constexpr std::size_t kStep = ProductRows::kStep;
  constexpr auto kUpper = static_cast<std::int32_t>(0xf0f0f0f0);
  constexpr std::int32_t kMiddles = UpperRows::kMiddle * 0x01010101;
  const std::size_t ahead = kVectors * kInt32s * kStep * steps / 2;
  for (std::size_t first = 0; first < kBlock; first += kVectors * kInt32s) {
    Int32s lanes[Planes][kVectors] = {};
    for (std::size_t pair = 0; pair < steps / 2; ++pair) {
      Int32s rows[2][kVectors];
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) {
        const std::size_t i = first + v * kInt32s;
        const std::uint8_t* entries = row + ((i / 16 * (steps / 2) + pair) * 16 + i % 16) * kStep;
        __builtin_prefetch(entries + ahead);
        const auto two = load<Int32s>(entries);
        rows[0][v] = ((two << 4) & kUpper) | kMiddles;
        rows[1][v] = (two & kUpper) | kMiddles;
      }
#pragma GCC unroll 8
      for (std::size_t p = 0; p < Planes; ++p)
#pragma GCC unroll 2
        for (std::size_t odd = 0; odd < 2; ++odd) {
          const auto entries = load<std::int32_t>(plane + (p * steps + 2 * pair + odd) * kStep);
#pragma GCC unroll 4
          for (std::size_t v = 0; v < kVectors; ++v)
            lanes[p][v] = add_step(lanes[p][v], rows[odd][v], repeated(entries));
        }
    }
#pragma GCC unroll 8
    for (std::size_t p = 0; p < Planes; ++p)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) store(sums[p] + first + v * kInt32s, lanes[p][v]);
  }
}

// Four rows at a time: each load of the query serves all, and their sums wait for each other no more.
void byte_dots(const std::uint8_t* const* rows, std::size_t n_rows, const std::int8_t* query, std::size_t length,
               std::int32_t surplus, std::int32_t* sums) {
  constexpr std::size_t kRows = 4;
  for (std::size_t r = 0; r < n_rows; r += kRows) {
    const std::size_t count = n_rows - r < kRows ? n_rows - r : kRows;
    const std::uint8_t* row[kRows];
    for (std::size_t i = 0; i < kRows; ++i) row[i] = rows[r + (i < count ? i : 0)];
    Int32s lanes[kRows] = {};
    for (std::size_t at = 0; at < length; at += sizeof(Int32s)) {
      const auto entries = load<Int32s>(query + at);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < kRows; ++i) lanes[i] = add_step(lanes[i], load<Int32s>(row[i] + at), entries);
    }
    std::int32_t four[kRows];
    sums_of_four(lanes, four);
    for (std::size_t i = 0; i < count; ++i) sums[r + i] = four[i] - surplus;
  }
}

#endif

// Takes `Rows` products, product(i) for the row first_row + i, for the strongest of their groups. `Run` vectors of rows
// are of one group, so that its strongest stays in a register for them.
template <std::size_t Rows, std::size_t Run, typename Product>
void take_runs(const Product& product, std::size_t first_row, std::size_t depth, std::uint32_t* strongest) {
  constexpr std::size_t kLanes = StrongestProduct::kLanes;
  constexpr std::uint32_t kPlaces = StrongestProduct::kPlaces;
  const auto shift = static_cast<unsigned>(__builtin_ctzll(depth));
#pragma GCC unroll 4
  for (std::size_t begin = 0; begin < Rows; begin += Run * kLanes) {
    const std::size_t row = (first_row + begin) / kLanes, place = row & (depth - 1);
    std::uint32_t* group = strongest + (row >> shift) * kLanes;
    const auto after = static_cast<std::uint32_t>(2 * (StrongestProduct::kMostDepth - 1 - place));
    const std::uint32_t least = place == 0 ? 0 : 0xffffffff;  // what was there before does not count
#pragma omp simd
    for (std::size_t i = 0; i < kLanes; ++i) {
      std::uint32_t best = group[i] & least;
#pragma GCC unroll 4
      for (std::size_t v = 0; v < Run; ++v) {
        const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, product(begin + v * kLanes + i));
        const std::uint32_t entry = ((bits << 1 | bits >> 31) & ~kPlaces) | (after - static_cast<std::uint32_t>(2 * v));
        best = entry > best ? entry : best;
      }
      group[i] = best;
    }
  }
}

template <std::size_t Rows, typename Product>
void take_strongest(const Product& product, std::size_t first_row, std::size_t depth, std::uint32_t* strongest) {
  constexpr std::size_t kVectors = Rows / StrongestProduct::kLanes;
  if (depth >= kVectors)
    take_runs<Rows, kVectors>(product, first_row, depth, strongest);
  else if (depth >= 2)
    take_runs<Rows, 2>(product, first_row, depth, strongest);
  else
    take_runs<Rows, 1>(product, first_row, depth, strongest);
}

// The same for products with rows from first_row on, whose sums with bytes are given.
template <std::size_t Rows>
void take_strongest(const std::int32_t* sums, const float* scales, std::int32_t surplus, float scale,
                    std::size_t first_row, std::size_t depth, std::uint32_t* strongest) {
  const auto product = [=](std::size_t i) { return static_cast<float>(sums[i] - surplus) * scale * scales[i]; };
  take_strongest<Rows>(product, first_row, depth, strongest);
}

void strongest_left(const float* products, std::size_t count, const InterleavedRows& taken, std::size_t depth,
                    std::uint32_t* strongest) {
  constexpr std::size_t kRows = InterleavedRows::kRows;
  const std::size_t n_rows = kRows * taken.n_fours;
  const float step = taken.step, finer = taken.step / InterleavedRows::kFiner;
  alignas(64) std::int32_t sums[2][kBlock];
  const std::int32_t added = surplus(taken.weights, n_rows), more_added = surplus(taken.weights + n_rows, n_rows);
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    weighted_sums(taken.entries + kRows * begin, kRows * count, taken.weights, taken.n_fours, sums);
    const float* some = products + begin;
    const std::int32_t *whole = sums[0], *rest = sums[1];
    const auto left = [=](std::size_t i) {
      return some[i] + (static_cast<float>(whole[i] - added) * step + static_cast<float>(rest[i] - more_added) * finer);
    };
    take_strongest<kBlock>(left, begin, depth, strongest);
  }
}

template <std::size_t Queries>
void strongest_in_block(const ProductRows& rows, std::size_t block, std::size_t depth, const ProductQueries& queries,
                        std::size_t first, std::uint32_t* strongest, std::size_t stride) {
  const std::size_t length = ProductRows::kStep * rows.steps;
  alignas(64) std::int32_t sums[Queries][kBlock];
  block_sums<Queries>(rows.entries + block * kBlock * length, queries.entries + first * length, rows.steps, sums);
  for (std::size_t q = 0; q < Queries; ++q)
    take_strongest<kBlock>(sums[q], rows.scales + block * kBlock, queries.surpluses[first + q],
                           queries.scales[first + q], block * kBlock, depth, strongest + (first + q) * stride);
}

template <std::size_t Planes>
void sums_of_block(const ProductRows& rows, std::size_t block, const std::int8_t* plane, std::int32_t (*sums)[kBlock]) {
  block_sums<Planes>(rows.entries + block * kBlock * ProductRows::kStep * rows.steps, plane, rows.steps, sums);
}

template <std::size_t Planes>
void sums_of_block(const UpperRows& rows, std::size_t block, const std::int8_t* plane, std::int32_t (*sums)[kBlock]) {
  upper_sums<Planes>(rows.entries + block * kBlock * ProductRows::kStep * rows.steps / 2, plane, rows.steps, sums);
}

// Products of `Queries` queries from `first` on with the first n_rows rows of a block.
template <std::size_t Planes, std::size_t Queries, typename Rows>
void multiply_block(const Rows& rows, std::size_t block, std::size_t n_rows, const ProductQueries& queries,
                    std::size_t first, float* products, std::size_t stride) {
  const std::size_t length = ProductRows::kStep * rows.steps;
  alignas(64) std::int32_t sums[Queries * Planes][kBlock];
  sums_of_block<Queries * Planes>(rows, block, queries.entries + first * Planes * length, sums);
  for (std::size_t q = 0; q < Queries; ++q) {
    float* columns = products + (first + q) * stride + block * kBlock;
    const float* scales = queries.scales + (first + q) * Planes;
    const std::int32_t* surpluses = queries.surpluses + (first + q) * Planes;
#pragma omp simd
    for (std::size_t i = 0; i < n_rows; ++i) {
      float product = 0.0f;
      for (std::size_t p = 0; p < Planes; ++p)
        product += static_cast<float>(sums[q * Planes + p][i] - surpluses[p]) * scales[p];
      columns[i] = product * rows.scales[block * kBlock + i];
    }
  }
}

// A block of rows stays in the first-level cache while all queries pass by.
template <std::size_t Planes, typename Rows>
void multiply_all(const Rows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                  std::size_t stride) {
  constexpr std::size_t kTile = kPlanes < Planes ? 1 : kPlanes / Planes;
  for (std::size_t block = 0; block < rows.n_blocks; ++block) {
    const std::size_t left = n_rows - block * kBlock, count = left < kBlock ? left : kBlock;
    std::size_t q = 0;
    for (; q + kTile <= queries.n; q += kTile)
      multiply_block<Planes, kTile>(rows, block, count, queries, q, products, stride);
    for (; q < queries.n; ++q) multiply_block<Planes, 1>(rows, block, count, queries, q, products, stride);
  }
}

#if defined(__AMX_INT8__)

// Calls visit(q, begin, sums) for whole tiles of queries, and kTileRows rows from `begin` on each time. Returns the
// number of these queries.
template <typename Visit>
std::size_t for_tiles(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, const Visit& visit) {
  constexpr std::size_t kStep = ProductRows::kStep;
  const std::size_t tile = tile_steps(rows.steps), length = kStep * rows.steps;
  const std::size_t n_queries = queries.n / kTileQueries * kTileQueries;
  // Of narrow tiles, much is empty.
  if (queries.n_planes != 1 || tile < 8 || n_queries == 0) return 0;
  const TileShapes shapes(tile, 4, 6);
  // Some queries stay in the first-level cache while rows pass by, which stay in the second-level one for all queries.
  const auto some = [length](std::size_t bytes, std::size_t unit) {
    const std::size_t units = bytes / length / unit;
    return units == 0 ? unit : units * unit;
  };
  const std::size_t some_queries = some(24 << 10, kTileQueries), some_rows = some(512 << 10, kTileRows);
  // Those of a block are visited while the next one's are computed.
  alignas(64) std::int32_t sums[2][kTileQueries][kTileRows];
  std::size_t block = 0, last_begin = 0, last_first = 0;
  for (std::size_t row = 0; row < n_rows; row += some_rows) {
    const std::size_t end_row = row + some_rows < n_rows ? row + some_rows : n_rows;
    for (std::size_t query = 0; query < n_queries; query += some_queries) {
      const std::size_t end_query = query + some_queries < n_queries ? query + some_queries : n_queries;
      for (std::size_t begin = row; begin < end_row; begin += kTileRows)
        for (std::size_t first = query; first < end_query; first += kTileQueries) {
          const std::int32_t(*last)[kTileRows] = sums[(block + 1) % 2];
          std::size_t q = block == 0 ? kTileQueries : 0;
          tile_sums(rows.entries + begin * length, queries.entries + first * length, length, rows.steps, tile,
                    sums[block % 2], [&](std::size_t done, std::size_t steps) {
                      for (; q < kTileQueries * done / steps; ++q) visit(last_first + q, last_begin, last[q]);
                    });
          last_begin = begin;
          last_first = first;
          ++block;
        }
    }
  }
  for (std::size_t q = 0; q < kTileQueries; ++q) visit(last_first + q, last_begin, sums[(block + 1) % 2][q]);
  return n_queries;
}

std::size_t multiply_tiles(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                           std::size_t stride) {
  return for_tiles(rows, n_rows, queries, [&](std::size_t q, std::size_t begin, const std::int32_t* sums) {
    const std::size_t count = n_rows - begin < kTileRows ? n_rows - begin : kTileRows;
    const std::int32_t surplus = queries.surpluses[q];
    float* to = products + q * stride + begin;
#pragma GCC unroll 2
    for (std::size_t i = 0; i < kTileRows; i += kFloats) {
      const Floats whole = _mm512_cvtepi32_ps(raw(load<Int32s>(sums + i) - surplus));
      const Floats product = whole * repeated(queries.scales[q]) * load<Floats>(rows.scales + begin + i);
      if (i < count) _mm512_mask_storeu_ps(to + i, first_lanes(count - i), product);
    }
  });
}

std::size_t strongest_in_tiles(const ProductRows& rows, std::size_t depth, const ProductQueries& queries,
                               std::uint32_t* strongest, std::size_t stride) {
  const std::size_t n_rows = rows.n_blocks * kBlock;
  return for_tiles(rows, n_rows, queries, [&](std::size_t q, std::size_t begin, const std::int32_t* sums) {
    take_strongest<kTileRows>(sums, rows.scales + begin, queries.surpluses[q], queries.scales[q], begin, depth,
                              strongest + q * stride);
  });
}

#else

inline std::size_t multiply_tiles(const ProductRows&, std::size_t, const ProductQueries&, float*, std::size_t) {
  return 0;
}
inline std::size_t strongest_in_tiles(const ProductRows&, std::size_t, const ProductQueries&, std::uint32_t*,
                                      std::size_t) {
  return 0;
}

#endif

// The queries from number `first` on.
inline ProductQueries queries_from(const ProductQueries& queries, std::size_t first, std::size_t steps) {
  const std::size_t planes = first * queries.n_planes;
  return {queries.entries + planes * ProductRows::kStep * steps, queries.scales + planes, queries.surpluses + planes,
          queries.n - first, queries.n_planes};
}

void multiply(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
              std::size_t stride) {
  const std::size_t done = multiply_tiles(rows, n_rows, queries, products, stride);
  const ProductQueries left = queries_from(queries, done, rows.steps);
  if (queries.n_planes == 1)
    multiply_all<1>(rows, n_rows, left, products + done * stride, stride);
  else
    multiply_all<3>(rows, n_rows, left, products + done * stride, stride);
}

void multiply_upper(const UpperRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                    std::size_t stride) {
  multiply_all<1>(rows, n_rows, queries, products, stride);
}

void multiply_strongest(const ProductRows& rows, std::size_t depth, const ProductQueries& queries,
                        std::uint32_t* strongest, std::size_t stride) {
  constexpr std::size_t kTile = kPlanes;
  const std::size_t done = strongest_in_tiles(rows, depth, queries, strongest, stride);
  for (std::size_t block = 0; block < rows.n_blocks; ++block) {
    std::size_t q = done;
    for (; q + kTile <= queries.n; q += kTile)
      strongest_in_block<kTile>(rows, block, depth, queries, q, strongest, stride);
    for (; q < queries.n; ++q) strongest_in_block<1>(rows, block, depth, queries, q, strongest, stride);
  }
}

}  // namespace
}  // namespace compressae
