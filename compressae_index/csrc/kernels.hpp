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
  // maxima[b] = the largest absolute entry of block b; count is a multiple of kBlock.
  void (*block_max_abs)(const float* x, std::size_t count, float* maxima);
  // sum of u[latents[i]] * values[i]; u must hold 65,536 entries.
  float (*gather_dot)(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u);
  // y += a * x
  void (*add_scaled)(std::size_t count, float a, const float* x, float* y);
};

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace compressae
