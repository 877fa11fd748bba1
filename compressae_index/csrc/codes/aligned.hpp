// The aligned form of codes: k latents and as many 8-bit values a row, each array aligned to its numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/half.hpp"
#include "codes/forward.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// The arrays, borrowed: value i of row r is values[r][i] * scales[r].
struct AlignedView {
  std::size_t n_documents = 0;
  std::size_t k = 0;
  const std::uint16_t* latents = nullptr;  // (n_documents, k)
  const std::int8_t* values = nullptr;     // (n_documents, k)
  const std::uint16_t* scales = nullptr;   // (n_documents) half precision

  // As CodeRows has them.
  void prefetch(std::size_t i) const {
    __builtin_prefetch(latents + i * k);
    __builtin_prefetch(values + i * k);
    __builtin_prefetch(scales + i);
  }

  // <u, code> of consecutive rows.
  void scores(std::size_t first, std::size_t count, const float* u, const Kernels& kernel, float* results) const {
    for (std::size_t row = first; row < first + count; ++row)
      *results++ = from_half(scales[row]) * kernel.gather_dot(latents + row * k, values + row * k, k, u);
  }

  // The same of at most kScoredRows rows anywhere.
  void scores_of(const std::size_t* rows, std::size_t count, const float* u, const Kernels& kernel,
                 float* results) const {
    thread_local std::vector<std::uint16_t> near_latents;
    thread_local std::vector<std::int8_t> near_values;
    near_latents.resize(kScoredRows * k);
    near_values.resize(kScoredRows * k);
    std::uint16_t near_scales[kScoredRows];
    for (std::size_t i = 0; i < count; ++i) {
      std::copy_n(latents + rows[i] * k, k, near_latents.data() + i * k);
      std::copy_n(values + rows[i] * k, k, near_values.data() + i * k);
      near_scales[i] = scales[rows[i]];
    }
    const AlignedView near{count, k, near_latents.data(), near_values.data(), near_scales};
    near.scores(0, count, u, kernel, results);
  }

  // Whether a row holds ascending latents below n_latents and finite values.
  bool is_whole(std::size_t row, std::size_t n_latents) const {
    const std::uint16_t* latent = latents + row * k;
    int unsorted = latent[k - 1] >= n_latents;
    for (std::size_t i = 1; i < k; ++i) unsorted |= latent[i] <= latent[i - 1];
    return unsorted == 0 && is_positive_half(scales[row]);
  }
};

}  // namespace compressae
