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
    sum.assign(dim, 0.0f);
    for (std::size_t i = row * k; i < (row + 1) * k; ++i) {
      const float* atom = dictionary + latents[i] * dim;
      const float value = values[i];
      for (std::size_t d = 0; d < dim; ++d) sum[d] += value * atom[d];
    }
    norms[row] = std::sqrt(kernels().dot(sum.data(), sum.data(), dim));
  });
  return norms;
}

}  // namespace compressae
