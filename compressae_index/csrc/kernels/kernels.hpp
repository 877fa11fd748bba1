// The innermost loops, as a table of functions with one entry for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compressae {

// Latents are numbers of 16 bits. What kernels gather from holds as many entries, so that any latent of a damaged file
// still falls inside.
inline constexpr std::size_t kMaxLatents = 65536;

// Floats that rows of products are padded to.
inline constexpr std::size_t kBlock = 64;

// Scores that are compared at a time, and hits that harvest's buffers hold, where it may write 32 more that are none.
inline constexpr std::size_t kGroup = 64, kHits = 512, kHitSlack = 32;

// Bytes that byte_dots takes at a time.
inline constexpr std::size_t kByteStep = 64;

// Floats that add_rows takes at a time.
inline constexpr std::size_t kLanes = 16;

// Equally wide numbers one behind the other in a packed row. 16 of them take 2 * width bytes, so that every group of
// 16, and of 8, begins at the same bit of a byte: what picks a group's bytes is computed once.
struct PackedField {
  std::size_t start;            // first bit within the row
  std::size_t width;            // bits of a number, at most 16
  std::size_t quarter_byte[4];  // byte where numbers 0, 4, 8 and 12 begin, counted from byte start / 8
  std::uint8_t shuffle[64];     // the four bytes that hold number i, counted from its quarter's byte
  std::uint8_t permute[64];     // the same, counted from byte start / 8
  std::uint32_t shift[16];      // bits below number i in these four bytes
};

// Rows of packed codes; codes/packed.hpp describes them.
struct PackedLayout {
  std::size_t k;
  std::size_t high_bits;
  PackedField low;
  PackedField value;
  std::size_t row_bytes;
  float levels[256];  // of both signs, relative to the row's scale; a level index is a place here
};

// Rows of residual codes; codes/residuals.hpp describes them. A number of `bits` is cut into a high and a low field of
// 1, 2 or 4 bits each (0: there is none), which lie in planes of their own, by groups of kGroupDims dimensions.
struct ResidualLayout {
  static constexpr std::size_t kGroupDims = 16;
  // Dimensions that queries are padded to: as many as a kernel takes at once.
  static constexpr std::size_t kQueryDims = 64;

  std::size_t n_groups;
  std::size_t high_bits, low_bits;
  std::size_t high_start, low_start;  // first byte of each plane within the row
  std::size_t row_bytes;
  std::uint8_t levels[64];  // by number, as level + ProductRows::kAdded
};

// Rows of bytes to multiply with, interleaved by 16 rows and kStep columns: entry j of row i is at
// ((i / 16 * steps + j / kStep) * 16 + i % 16) * kStep + j % kStep, as round(entry / scales[i]) + kAdded.
struct ProductRows {
  static constexpr std::size_t kStep = 4;
  static constexpr std::int32_t kAdded = 128;

  const std::uint8_t* entries;  // (n_blocks * 4, steps, 16, kStep)
  const float* scales;          // (n_blocks * kBlock)
  std::size_t n_blocks;         // of kBlock rows
  std::size_t steps;            // of kStep columns
};

// The upper halves of the bytes of such rows: products with them read half as much.
struct UpperRows {
  static constexpr std::uint8_t kMiddle = 8;  // what the lower halves count as

  // (n_blocks * 4, steps / 2, 16, kStep): of an even step in the lower bits, of the odd one behind it in the upper
  // ones.
  const std::uint8_t* entries;
  const float* scales;  // (n_blocks * kBlock)
  std::size_t n_blocks;
  std::size_t steps;  // even
};

// The other side of such products: each query is the sum of n_planes vectors of bytes.
struct ProductQueries {
  const std::int8_t* entries;     // (n, n_planes, kStep * steps)
  const float* scales;            // (n, n_planes)
  const std::int32_t* surpluses;  // (n, n_planes) of the entries
  std::size_t n;
  std::size_t n_planes;  // 1 or 3
};

// A product and where it is from as one number, larger for larger magnitudes: the bits of the float, rotated so that
// the sign is the lowest; above it, in place of the lowest bits of the mantissa, how many of its group come after it.
struct StrongestProduct {
  static constexpr std::size_t kLanes = 16;      // rows of a group are so many apart
  static constexpr std::size_t kMostDepth = 16;  // rows of a group
  static constexpr std::uint32_t kPlaces = 0x1e;
  static constexpr unsigned kExponent = 24;  // where the float's exponent begins

  // Of entry `at` of strongest products that are of `depth` rows each.
  static std::size_t row(std::uint32_t entry, std::size_t at, std::size_t depth) {
    return (at / kLanes * depth + (kMostDepth - 1 - (entry & kPlaces) / 2)) * kLanes + at % kLanes;
  }
  static float product(std::uint32_t entry) { return __builtin_bit_cast(float, (entry & ~kPlaces) >> 1 | entry << 31); }
};

// Rows of bytes, kAdded more than their entries, four and four interleaved: those of rows 4 * f ... 4 * f + 3 in column
// i begin at (f * count + i) * 4. What rows are before is in blocks of kBlock columns, each in the order of place().
struct InterleavedRows {
  static constexpr std::size_t kRows = 4;
  static constexpr float kFiner = 128.0f;

  // Of a column in its row: where interleaving registers of bytes leaves columns in order.
  static constexpr std::size_t place(std::size_t column) {
    const std::size_t i = column % kBlock;
    return column - i + i / 4 % 4 * 16 + i / 16 * 4 + i % 4;
  }

  const std::uint8_t* entries;  // (n_fours, count, kRows)
  // (2, n_fours, kRows): weights in steps, and what that leaves of them in steps that are kFiner times as fine.
  const std::int8_t* weights;
  std::size_t n_fours;
  float step;
};

// Some postings of a list, with at most one of a document, the weight of their values, and what each step of a value
// takes off it, in 1 / 128.
struct Postings {
  const std::uint16_t* ids;
  const std::int8_t* values;
  std::size_t count;
  std::int16_t weight;
  std::int16_t damping = 0;
};

// Where scores of directions are to become scores by distance.
struct Lengthening {
  static constexpr float kMost = 32000.0f;

  float score = 0.0f, length = 0.0f, shift = 0.0f, offset = 0.0f;
};

// Levels that floats are rounded to: the lowest, and how much higher the next one is above each bound.
struct RoundingLevels {
  float lowest;
  std::size_t n_bounds;
  float bounds[63], rises[63];
};

struct Kernels {
  // scores[i] becomes (score * scores[i] + length * x + shift) * x + offset without its fraction, for the norm x of
  // norms[i], and at most kMost in magnitude.
  void (*lengthen)(const std::uint16_t* norms, std::size_t count, const Lengthening& by, std::int16_t* scores);
  // scores[ids[i]] += values[i] * (weight - values[i] * damping / 128) / 128, both rounded, for the postings of each
  // list.
  void (*accumulate)(const Postings* lists, std::size_t n_lists, std::int16_t* scores);
  // largest[i] becomes the largest of scores[i], scores[i + n_groups], ...; both counts are multiples of kGroup, and
  // count one of n_groups.
  void (*group_maxima)(const std::int16_t* scores, std::size_t count, std::size_t n_groups, std::int16_t* largest);
  // Scores above the threshold among the first `count`, a multiple of kGroup.
  std::size_t (*count_above)(const std::int16_t* scores, std::size_t count, std::int16_t threshold);
  // Scans scores from `begin` on, and sets them to 0, until the buffers may not hold another group's hits, which are
  // scores above the threshold of documents below `end` whose bit of `allowed` is set (nullptr: all). Writes their
  // positions and scores and returns their number; `begin` becomes where to go on. begin is a multiple of kGroup.
  std::size_t (*harvest)(std::int16_t* scores, std::size_t& begin, std::size_t end, std::int16_t threshold,
                         const std::uint8_t* allowed, std::uint16_t* positions, std::int16_t* hits);
  // Set bits of `count` bytes.
  std::size_t (*count_bits)(const std::uint8_t* bytes, std::size_t count);
  // Entries x with |x| >= least.
  std::size_t (*count_at_least)(const float* x, std::size_t count, float least);
  // Writes their positions, of which `positions` has place for all `count`, and returns their number.
  std::size_t (*find_at_least)(const float* x, std::size_t count, float least, std::uint32_t* positions);
  // Index of the largest absolute entry, the lowest of equal ones; count is a multiple of kBlock, at most 65,536.
  std::size_t (*arg_max_abs)(const float* x, std::size_t count);
  // sum of u[latents[i]] * values[i]; u must hold kMaxLatents entries.
  float (*gather_dot)(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u);
  // <u, code> of consecutive packed rows, 0 for a damaged row that does not hold k latents. u must hold kMaxLatents
  // entries; up to 64 bytes from inside a row on are read.
  void (*packed_dots)(const PackedLayout& layout, const std::uint8_t* rows, std::size_t n_rows, const float* u,
                      float* scores);
  // <levels, query> of consecutive residual rows. The query has whole kQueryDims, 0 behind the last dimension; up to 64
  // bytes from inside a row on are read.
  void (*residual_dots)(const ResidualLayout& layout, const std::uint8_t* rows, std::size_t n_rows,
                        const std::int8_t* query, std::int32_t* sums);
  // Half-precision numbers as floats.
  void (*widen)(const std::uint16_t* halves, std::size_t count, float* floats);
  // products[q * stride + i] = <query q, row i> for the first n_rows rows; no sum of 32 bits may overflow.
  void (*multiply)(const ProductRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                   std::size_t stride);
  // The same with the upper halves of rows, and of queries of one plane.
  void (*multiply_upper)(const UpperRows& rows, std::size_t n_rows, const ProductQueries& queries, float* products,
                         std::size_t stride);
  // For each query (of one plane) the strongest product of each group of rows: groups of `depth` (a power of
  // two, at most kMostDepth) rows, kLanes apart, in each `depth` times kLanes. (n, stride) numbers as StrongestProduct
  // says; products are below 1.5 in magnitude.
  void (*multiply_strongest)(const ProductRows& rows, std::size_t depth, const ProductQueries& queries,
                             std::uint32_t* strongest, std::size_t stride);
  // What products of bytes, kAdded more than entries, with this query exceed those of the entries by.
  std::int32_t (*surplus)(const std::int8_t* query, std::size_t count);
  // sums[i] = <entries of rows[i], query>, whose surplus is given; length is a multiple of kByteStep.
  void (*byte_dots)(const std::uint8_t* const* rows, std::size_t n_rows, const std::int8_t* query, std::size_t length,
                    std::int32_t surplus, std::int32_t* sums);
  // Interleaves kRows rows of `count` columns, whole blocks, as InterleavedRows says.
  void (*interleave)(const std::uint8_t* const* rows, std::size_t count, std::uint8_t* entries);
  // Of each group of `depth` columns, as multiply_strongest does of rows, the strongest of products[i] plus the rows'
  // entries times their weights; count is whole blocks.
  void (*strongest_left)(const float* products, std::size_t count, const InterleavedRows& taken, std::size_t depth,
                         std::uint32_t* strongest);
  // sum of x[i] * y[i]
  float (*dot)(const float* x, const float* y, std::size_t count);
  // products[i * stride + j] = <rows[i], others[j]>
  void (*dots)(const float* const* rows, std::size_t n_rows, const float* const* others, std::size_t n_others,
               std::size_t count, float* products, std::size_t stride);
  // y += the sum of weights[r] * rows[r * stride ...]; count is a multiple of kLanes.
  void (*add_rows)(const float* rows, std::size_t stride, const float* weights, std::size_t n_rows, std::size_t count,
                   float* y);
  // y becomes the sum of weights[r] * rows[numbers[r] * count ...]: a code's reconstruction.
  void (*combine)(const float* rows, std::size_t count, const std::uint16_t* numbers, const float* weights,
                  std::size_t n_rows, float* y);
  // rounded[i] becomes the level of x[i] * factor; count is a multiple of kLanes.
  void (*round_to_levels)(const float* x, std::size_t count, float factor, const RoundingLevels& levels,
                          float* rounded);
};

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vbmi;
extern const Kernels kernels_amx;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

}  // namespace compressae
