// The innermost loops, as a table of functions with one entry for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compressae {

// Entries a block of the block-wise maxima covers.
inline constexpr std::size_t kBlock = 64;

struct Kernels {
  // scores[ids[i]] += weight * values[i]; a document stands at most once in a posting list.
  void (*accumulate)(const std::uint16_t* ids, const std::int8_t* values, std::size_t count, float weight,
                     float* scores);
  // maxima[b] = the largest entry of block b; count is a multiple of kBlock.
  void (*block_max)(const float* x, std::size_t count, float* maxima);
  // Index of the largest absolute entry, the lowest of equal ones; count is a multiple of kBlock, at most 65,536.
  std::size_t (*arg_max_abs)(const float* x, std::size_t count);
  // sum of u[latents[i]] * values[i]; u must hold 65,536 entries.
  float (*gather_dot)(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u);
  // y += the sum of weights[r] * rows[r], rows of half precision; count is a multiple of kBlock.
  void (*add_half_rows)(const std::uint16_t* const* rows, const float* weights, std::size_t n_rows,
                        std::size_t count, float* y);
  // sum of x[i] * y[i]
  float (*dot)(const float* x, const float* y, std::size_t count);
};

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace compressae
