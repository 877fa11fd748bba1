// The terms of a query: the latents that its projection is largest at.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/dispatch.hpp"

namespace compressae {

struct Term {
  std::size_t latent;
  float weight;
};

// The largest magnitude that at least `wanted` of n entries reach, or a lower one that at most `spare` more do; 0 where
// fewer are numbers.
inline float magnitude_reached(const float* entries, std::size_t n, std::size_t wanted, std::size_t spare) {
  // Magnitudes are in the order of their bits.
  std::uint32_t low = 0, high = __builtin_bit_cast(std::uint32_t, std::numeric_limits<float>::infinity()) + 1;
  for (std::size_t reached = n; high - low > 1 && reached > wanted + spare;) {
    const std::uint32_t middle = low + (high - low) / 2;
    const std::size_t n_above = kernels().count_at_least(entries, n, __builtin_bit_cast(float, middle));
    if (n_above >= wanted) {
      low = middle;
      reached = n_above;
    } else {
      high = middle;
    }
  }
  return __builtin_bit_cast(float, low);
}

// The entries whose magnitude is at least `least`, in their order.
inline std::vector<Term> terms_reaching(const float* entries, std::size_t n, float least) {
  const auto positions = std::make_unique_for_overwrite<std::uint32_t[]>(n);
  const std::size_t found = kernels().find_at_least(entries, n, least, positions.get());
  std::vector<Term> terms;
  terms.reserve(found);
  for (std::size_t i = 0; i < found; ++i) terms.push_back({positions[i], entries[positions[i]]});
  return terms;
}

// Leaves the `count` terms of largest absolute weight, in their order; a tie goes to the first.
inline void keep_largest(std::vector<Term>& terms, std::size_t count) {
  if (terms.size() <= count) return;
  std::vector<float> weights;
  for (const Term& term : terms) weights.push_back(term.weight);
  const float least = magnitude_reached(weights.data(), weights.size(), count, 0);
  std::size_t ties = count;
  for (const float weight : weights) ties -= std::fabs(weight) > least ? 1 : 0;
  std::erase_if(terms, [&](const Term& term) {
    const float magnitude = std::fabs(term.weight);
    if (magnitude != least) return !(magnitude > least);
    if (ties == 0) return true;
    --ties;
    return false;
  });
}

// The query_nnz largest absolute entries of a projection in the order of latents, zeros left out.
inline std::vector<Term> largest_terms(const float* projection, std::size_t n_latents, std::size_t query_nnz) {
  query_nnz = std::min(query_nnz, n_latents);
  const float least = magnitude_reached(projection, n_latents, query_nnz, query_nnz / 4);
  std::vector<Term> terms = terms_reaching(projection, n_latents, least);
  keep_largest(terms, query_nnz);
  std::erase_if(terms, [](const Term& term) { return term.weight == 0.0f; });
  return terms;
}

}  // namespace compressae
