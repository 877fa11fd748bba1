// The forward part: a document's code, row by row, in this aligned form or in the packed one of packed.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
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

// Rows the forward part is scanned in at a time.
inline constexpr std::size_t kScanRows = 64;

// Calls visit(row) for the allowed rows of [first, last); first is a multiple of 64.
template <typename Visit>
void for_each_allowed(const Allowed& allowed, std::size_t first, std::size_t last, const Visit& visit) {
  for (std::size_t begin = first; begin < last; begin += 64) {
    const std::size_t count = std::min<std::size_t>(64, last - begin);
    std::uint64_t bits = 0;
    std::memcpy(&bits, allowed.bitmap + begin / 8, (count + 7) / 8);
    if (count < 64) bits &= (std::uint64_t{1} << count) - 1;
    for (; bits != 0; bits &= bits - 1) visit(begin + static_cast<std::size_t>(__builtin_ctzll(bits)));
  }
}

// Offers the rows of [first, last) by their whole codes; first is a multiple of 64. Codes is ForwardView or PackedView.
template <typename Codes>
void scan_forward(const Codes& codes, const float* u, std::size_t first, std::size_t last, const Allowed& allowed,
                  std::int64_t first_row, TopK& top_k) {
  const Kernels& kernel = kernels();
  const auto offer = [&](float score, std::size_t row) {
    if (score > top_k.threshold()) top_k.push(score, first_row + static_cast<std::int64_t>(row));
  };
  if (!allowed.all()) {
    // One row behind, so that the next one is already on its way.
    std::size_t waiting = last;
    for_each_allowed(allowed, first, last, [&](std::size_t row) {
      codes.prefetch(row);
      if (waiting != last) offer(codes.score(waiting, u, kernel), waiting);
      waiting = row;
    });
    if (waiting != last) offer(codes.score(waiting, u, kernel), waiting);
    return;
  }
  float scores[kScanRows];
  for (std::size_t begin = first; begin < last; begin += kScanRows) {
    const std::size_t count = std::min(kScanRows, last - begin);
    codes.scores(begin, count, u, kernel, scores);
    for (std::size_t i = 0; i < count; ++i) offer(scores[i], begin + i);
  }
}

// Offers n rows, ascending from first_row on, by their whole codes.
template <typename Codes>
void rescore_forward(const Codes& codes, const float* u, const std::int64_t* rows, std::size_t n,
                     std::int64_t first_row, TopK& top_k) {
  const Kernels& kernel = kernels();
  constexpr std::size_t kAhead = 8;
  const auto place = [&](std::size_t i) { return static_cast<std::size_t>(rows[i] - first_row); };
  for (std::size_t i = 0; i < std::min(kAhead, n); ++i) codes.prefetch(place(i));
  for (std::size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) codes.prefetch(place(i + kAhead));
    const float score = codes.score(place(i), u, kernel);
    if (score > top_k.threshold()) top_k.push(score, rows[i]);
  }
}

}  // namespace compressae
