// The forward part: a document's code, row by row, in this aligned form or in the packed one of packed.hpp.
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

  // Scores of consecutive rows.
  void scores(std::size_t first, std::size_t count, const float* u, const Kernels& kernel, float* results) const {
    for (std::size_t i = 0; i < count; ++i) results[i] = score(first + i, u, kernel);
  }

  void prefetch(std::size_t row) const {
    const char* latent = reinterpret_cast<const char*>(latents + row * k);
    const char* value = reinterpret_cast<const char*>(values + row * k);
    for (std::size_t byte = 0; byte < 2 * k; byte += 64) __builtin_prefetch(latent + byte);
    for (std::size_t byte = 0; byte < k; byte += 64) __builtin_prefetch(value + byte);
    __builtin_prefetch(scales + row);
  }
};

// Codes is ForwardView or PackedView.
template <typename Codes>
void search_forward(const Codes& codes, const float* u, const Allowed& allowed, TopK& top_k) {
  const Kernels& kernel = kernels();
  const auto offer = [&](float score, std::size_t row) {
    if (score > top_k.threshold()) top_k.push(score, static_cast<std::int64_t>(row));
  };
  if (!allowed.all()) {
    for (std::size_t row = 0; row < codes.n_documents; ++row)
      if (allowed(row)) offer(codes.score(row, u, kernel), row);
    return;
  }
  constexpr std::size_t kRows = 64;
  float scores[kRows];
  for (std::size_t begin = 0; begin < codes.n_documents; begin += kRows) {
    const std::size_t count = std::min(kRows, codes.n_documents - begin);
    codes.scores(begin, count, u, kernel, scores);
    for (std::size_t i = 0; i < count; ++i) offer(scores[i], begin + i);
  }
}

// Scores the candidate rows; they must be distinct. A negative candidate is an empty place.
template <typename Codes>
void rescore_forward(const Codes& codes, const float* u, std::vector<std::int64_t> candidates, TopK& top_k) {
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
