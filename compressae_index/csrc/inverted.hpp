// The inverted part: posting lists scanned term at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu.hpp"
#include "thread_pool.hpp"
#include "top_k.hpp"

namespace compressae {

// Documents a window: small enough that a window's accumulators stay in the second-level cache, large enough
// that a list of a window is longer than the cost of starting it.
inline constexpr std::size_t kWindow = 32768;
// Length of the accumulators: any 16-bit id of a damaged file still falls inside.
inline constexpr std::size_t kAccumulators = 65536;

// Arrays of the inverted part, borrowed. Window w holds the documents [w * kWindow, (w + 1) * kWindow); its
// list of latent j stands at starts[w] + offsets[w][j] ... starts[w] + offsets[w][j + 1] of ids and values.
// A posting's value is values[i] * scales[w][j], so it is rounded by at most half of scales[w][j], which is the
// list's largest absolute value / 127.
struct InvertedView {
  std::size_t n_documents = 0;
  std::size_t n_latents = 0;
  std::size_t n_postings = 0;
  const std::uint64_t* starts = nullptr;   // (n_windows + 1)
  const std::uint32_t* offsets = nullptr;  // (n_windows, n_latents + 1)
  const float* scales = nullptr;           // (n_windows, n_latents)
  const std::uint16_t* ids = nullptr;      // (n_postings)
  const std::int8_t* values = nullptr;     // (n_postings)

  std::size_t n_windows() const { return (n_documents + kWindow - 1) / kWindow; }

  // Throws where a list would reach outside of the arrays.
  void validate() const {
    if (starts[0] != 0 || starts[n_windows()] != n_postings)
      throw std::invalid_argument("corrupt posting lists: windows hold " + std::to_string(starts[n_windows()]) +
                                  " postings, the arrays " + std::to_string(n_postings));
    for (std::size_t w = 0; w < n_windows(); ++w) {
      const std::uint32_t* offset = offsets + w * (n_latents + 1);
      const bool ordered = starts[w] <= starts[w + 1] && std::is_sorted(offset, offset + n_latents + 1);
      if (!ordered || offset[0] != 0 || starts[w + 1] - starts[w] != offset[n_latents])
        throw std::invalid_argument("corrupt posting lists: offsets of window " + std::to_string(w));
    }
  }
};

struct InvertedArrays {
  std::vector<std::uint64_t> starts;
  std::vector<std::uint32_t> offsets;
  std::vector<float> scales;
  std::vector<std::uint16_t> ids;
  std::vector<std::int8_t> values;
};

// Posting lists of codes: latents and values are (n_documents, k), latents below n_latents.
inline InvertedArrays build_inverted(const std::uint16_t* latents, const float* values, std::size_t n_documents,
                                     std::size_t k, std::size_t n_latents, std::size_t num_threads) {
  const std::size_t n_windows = (n_documents + kWindow - 1) / kWindow;
  InvertedArrays arrays;
  arrays.starts.resize(n_windows + 1);
  for (std::size_t w = 0; w <= n_windows; ++w)
    arrays.starts[w] = std::min(w * kWindow, n_documents) * static_cast<std::uint64_t>(k);
  arrays.offsets.assign(n_windows * (n_latents + 1), 0);
  arrays.scales.assign(n_windows * n_latents, 0.0f);
  arrays.ids.resize(n_documents * k);
  arrays.values.resize(n_documents * k);

  ThreadPool::instance().parallel_for(n_windows, num_threads, [&](std::size_t w) {
    const std::size_t first = w * kWindow * k;
    const std::size_t last = std::min((w + 1) * kWindow, n_documents) * k;
    std::uint32_t* offset = arrays.offsets.data() + w * (n_latents + 1);
    float* scale = arrays.scales.data() + w * n_latents;
    for (std::size_t i = first; i < last; ++i) {
      ++offset[latents[i] + 1];
      scale[latents[i]] = std::max(scale[latents[i]], std::fabs(values[i]));
    }
    std::partial_sum(offset, offset + n_latents + 1, offset);
    for (std::size_t j = 0; j < n_latents; ++j) scale[j] /= 127.0f;
    std::vector<std::uint32_t> next(offset, offset + n_latents);
    for (std::size_t i = first; i < last; ++i) {
      const std::uint16_t latent = latents[i];
      const std::size_t posting = first + next[latent]++;
      arrays.ids[posting] = static_cast<std::uint16_t>(i / k - w * kWindow);
      const float steps = scale[latent] > 0.0f ? values[i] / scale[latent] : 0.0f;
      arrays.values[posting] = static_cast<std::int8_t>(std::lround(std::clamp(steps, -127.0f, 127.0f)));
    }
  });
  return arrays;
}

struct Term {
  std::size_t latent;
  float weight;
};

// The query_nnz largest absolute entries of a projection (a tie goes to the lower latent), zeros left out.
inline std::vector<Term> largest_terms(const float* projection, std::size_t n_latents, std::size_t query_nnz) {
  std::vector<Term> terms;
  terms.reserve(n_latents);
  for (std::size_t j = 0; j < n_latents; ++j)
    if (projection[j] != 0.0f) terms.push_back({j, projection[j]});
  if (terms.size() > query_nnz) {
    const auto nth = terms.begin() + static_cast<std::ptrdiff_t>(query_nnz);
    std::nth_element(terms.begin(), nth, terms.end(), [](const Term& a, const Term& b) {
      const float x = std::fabs(a.weight), y = std::fabs(b.weight);
      return x > y || (x == y && a.latent < b.latent);
    });
    terms.resize(query_nnz);
    // One order of summation, whatever nth_element leaves behind.
    std::sort(terms.begin(), terms.end(), [](const Term& a, const Term& b) { return a.latent < b.latent; });
  }
  return terms;
}

// Pushes the window's documents that can still enter, and clears the accumulators behind itself.
inline void harvest(float* scores, std::size_t count, std::size_t first_row, const Allowed& allowed, TopK& top_k) {
  float maxima[kWindow / kBlock];
  const std::size_t padded = (count + kBlock - 1) / kBlock * kBlock;
  kernels().block_max(scores, padded, maxima);
  for (std::size_t begin = 0; begin < padded; begin += kBlock) {
    if (!(maxima[begin / kBlock] > top_k.threshold())) continue;
    for (std::size_t i = begin; i < std::min(begin + kBlock, count); ++i)
      if (scores[i] > top_k.threshold() && allowed(first_row + i))
        top_k.push(scores[i], static_cast<std::int64_t>(first_row + i));
  }
  std::fill(scores, scores + padded, 0.0f);
}

// Scores every document by the signed sum over the terms' lists; a document in none of them scores 0.
// accumulators: kAccumulators zeros, left as zeros.
inline void search_inverted(const InvertedView& lists, const std::vector<Term>& terms, const Allowed& allowed,
                            float* accumulators, TopK& top_k) {
  const Kernels& kernel = kernels();
  for (std::size_t w = 0; w < lists.n_windows(); ++w) {
    const std::uint32_t* offset = lists.offsets + w * (lists.n_latents + 1);
    const float* scale = lists.scales + w * lists.n_latents;
    const std::uint16_t* ids = lists.ids + lists.starts[w];
    const std::int8_t* values = lists.values + lists.starts[w];
    for (std::size_t t = 0; t < terms.size(); ++t) {
      // The starts of lists are what the hardware cannot foresee.
      if (t + 2 < terms.size()) {
        const std::uint32_t ahead = offset[terms[t + 2].latent];
        for (std::size_t line = 0; line < 4; ++line) __builtin_prefetch(ids + ahead + 32 * line);
        for (std::size_t line = 0; line < 2; ++line) __builtin_prefetch(values + ahead + 64 * line);
      }
      if (w + 1 < lists.n_windows()) __builtin_prefetch(offset + lists.n_latents + 1 + terms[t].latent);
      const std::uint32_t begin = offset[terms[t].latent], end = offset[terms[t].latent + 1];
      kernel.accumulate(ids + begin, values + begin, end - begin, terms[t].weight * scale[terms[t].latent],
                        accumulators);
    }
    const std::size_t first_row = w * kWindow;
    harvest(accumulators, std::min(kWindow, lists.n_documents - first_row), first_row, allowed, top_k);
  }
}

}  // namespace compressae
