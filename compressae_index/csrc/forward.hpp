// The forward part: a document's code, row by row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu.hpp"
#include "half.hpp"
#include "top_k.hpp"

namespace compressae {

// Arrays of the forward part, borrowed: value i of row r is values[r][i] * scales[r].
struct ForwardView {
  std::size_t n_documents = 0;
  std::size_t k = 0;
  const std::uint16_t* latents = nullptr;  // (n_documents, k)
  const std::int8_t* values = nullptr;     // (n_documents, k)
  const std::uint16_t* scales = nullptr;   // (n_documents) half precision

  // <u, code of row>; u holds 65,536 entries, so that any latent of a damaged file still falls inside.
  float score(std::size_t row, const float* u, const Kernels& kernel) const {
    return from_half(scales[row]) * kernel.gather_dot(latents + row * k, values + row * k, k, u);
  }

  void prefetch(std::size_t row) const {
    const char* latent = reinterpret_cast<const char*>(latents + row * k);
    const char* value = reinterpret_cast<const char*>(values + row * k);
    for (std::size_t byte = 0; byte < 2 * k; byte += 64) __builtin_prefetch(latent + byte);
    for (std::size_t byte = 0; byte < k; byte += 64) __builtin_prefetch(value + byte);
    __builtin_prefetch(scales + row);
  }
};

inline void search_forward(const ForwardView& codes, const float* u, const Allowed& allowed, TopK& top_k) {
  const Kernels& kernel = kernels();
  for (std::size_t row = 0; row < codes.n_documents; ++row) {
    if (!allowed(row)) continue;
    const float score = codes.score(row, u, kernel);
    if (score > top_k.threshold()) top_k.push(score, static_cast<std::int64_t>(row));
  }
}

// Scores the candidate rows; they must be distinct. A negative candidate is an empty place.
inline void rescore_forward(const ForwardView& codes, const float* u, std::vector<std::int64_t> candidates,
                            TopK& top_k) {
  const Kernels& kernel = kernels();
  // Ascending rows read memory forwards, and are what TopK's threshold asks for.
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(candidates.begin(), std::lower_bound(candidates.begin(), candidates.end(), 0));
  constexpr std::size_t kAhead = 8;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (i + kAhead < candidates.size()) codes.prefetch(static_cast<std::size_t>(candidates[i + kAhead]));
    const float score = codes.score(static_cast<std::size_t>(candidates[i]), u, kernel);
    if (score > top_k.threshold()) top_k.push(score, candidates[i]);
  }
}

}  // namespace compressae
