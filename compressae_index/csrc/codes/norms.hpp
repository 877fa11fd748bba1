// Norms of reconstructions.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/thread_pool.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Norms of the reconstructions, the sums of values (n, k) times rows of the dictionary (n_latents, dim): (n).
inline std::vector<float> code_norms(const std::uint16_t* latents, const float* values, std::size_t n, std::size_t k,
                                     const float* dictionary, std::size_t dim, std::size_t num_threads) {
  std::vector<float> norms(n);
  for_each_row(n, num_threads, [&](std::size_t row) {
    thread_local std::vector<float> sum;
    sum.resize(dim);
    kernels().combine(dictionary, dim, latents + row * k, values + row * k, k, sum.data());
    norms[row] = std::sqrt(kernels().dot(sum.data(), sum.data(), dim));
  });
  return norms;
}

}  // namespace compressae
