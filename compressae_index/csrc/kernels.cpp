// Compiled once for each instruction set. No function of the standard library is used here: an inline one
// compiled with wider instructions could be the copy that the linker keeps for the whole module.
#include "kernels.hpp"

namespace compressae {
namespace {

void accumulate(const std::uint16_t* ids, const std::int8_t* values, std::size_t count, float weight,
                float* scores) {
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    // The four documents differ, so that the four additions do not wait for each other.
    const float s0 = scores[ids[i]] + weight * static_cast<float>(values[i]);
    const float s1 = scores[ids[i + 1]] + weight * static_cast<float>(values[i + 1]);
    const float s2 = scores[ids[i + 2]] + weight * static_cast<float>(values[i + 2]);
    const float s3 = scores[ids[i + 3]] + weight * static_cast<float>(values[i + 3]);
    scores[ids[i]] = s0;
    scores[ids[i + 1]] = s1;
    scores[ids[i + 2]] = s2;
    scores[ids[i + 3]] = s3;
  }
  for (; i < count; ++i) scores[ids[i]] += weight * static_cast<float>(values[i]);
}

void block_max(const float* x, std::size_t count, float* maxima) {
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    float largest = x[begin];
#pragma omp simd reduction(max : largest)
    for (std::size_t i = 0; i < kBlock; ++i) largest = x[begin + i] > largest ? x[begin + i] : largest;
    maxima[begin / kBlock] = largest;
  }
}

void block_max_abs(const float* x, std::size_t count, float* maxima) {
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    float largest = 0.0f;
#pragma omp simd reduction(max : largest)
    for (std::size_t i = 0; i < kBlock; ++i) {
      const float magnitude = __builtin_fabsf(x[begin + i]);
      largest = magnitude > largest ? magnitude : largest;
    }
    maxima[begin / kBlock] = largest;
  }
}

float gather_dot(const std::uint16_t* latents, const std::int8_t* values, std::size_t k, const float* u) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < k; ++i) sum += u[latents[i]] * static_cast<float>(values[i]);
  return sum;
}

void add_scaled(std::size_t count, float a, const float* x, float* y) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) y[i] += a * x[i];
}

}  // namespace

extern const Kernels COMPRESSAE_KERNELS{accumulate, block_max, block_max_abs, gather_dot, add_scaled};

}  // namespace compressae
