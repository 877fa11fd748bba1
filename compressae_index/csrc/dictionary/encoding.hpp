// Many vectors at once: their projections on a dictionary, and their codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/thread_pool.hpp"
#include "dictionary/dictionary.hpp"
#include "dictionary/gram_pursuit.hpp"
#include "dictionary/largest.hpp"
#include "dictionary/pursuit.hpp"
#include "dictionary/rows.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Vectors whose products with a dictionary are taken at once, so that its rows are read once for all.
inline constexpr std::size_t kProjectedRows = 48;

struct Projections {
  std::vector<float> on_atoms;  // (n, n_latents)
  std::vector<float> on_mean;   // (n), or none
};

// Bytes are too coarse for the rest of a vector whose largest entry is so many times the root mean square.
inline constexpr float kSpike = 6.0f;

// Products of the directions of vectors (n, dim) with all atoms, and with a mean (dim), unless that is null. With
// `rough`, they are rough but for those of vectors with spikes.
inline Projections project(const Projection& exact, const RoughProjection* rough, const float* vectors, std::size_t n,
                           const float* mean, std::size_t num_threads) {
  const std::size_t n_latents = exact.n_rows(), dim = exact.dim();
  Projections all{std::vector<float>(n * n_latents), std::vector<float>(mean != nullptr ? n : 0)};
  for_each_run(n, kProjectedRows, num_threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> unit((end - begin) * dim);
    for (std::size_t row = begin; row < end; ++row) {
      float* direction = unit.data() + (row - begin) * dim;
      write_direction(vectors + row * dim, dim, direction);
      if (mean != nullptr) all.on_mean[row] = kernels().dot(direction, mean, dim);
    }
    float* on_atoms = all.on_atoms.data() + begin * n_latents;
    if (rough == nullptr) {
      exact.multiply(unit.data(), end - begin, on_atoms);
      return;
    }
    rough->multiply(unit.data(), end - begin, on_atoms);
    const float most = kSpike / std::sqrt(static_cast<float>(dim));
    for (std::size_t i = 0; i < end - begin; ++i) {
      const float* direction = unit.data() + i * dim;
      if (largest_magnitude(direction, dim) > most) exact.multiply(direction, 1, on_atoms + i * n_latents);
    }
  });
  return all;
}

// Codes of n vectors, latents ascending.
struct CodeArrays {
  CodeArrays(std::size_t n, std::size_t k) : latents(n * k), values(n * k) {}

  std::vector<std::uint16_t> latents;  // (n, k)
  std::vector<float> values;           // (n, k)
};

// Dictionaries up to here are read as a Gram matrix: at 8,192 latents that takes 67 MB and, where bytes are multiplied
// by VNNI, half the time of rounds.
inline constexpr std::size_t kMostWithGram = 8192;

// Codes of unit vectors (n, dim) by pursuit with the Gram matrix.
inline CodeArrays pursue(const Dictionary& dictionary, const GramBytes& gram, const float* vectors, std::size_t n,
                         std::size_t k, std::size_t solve_every, std::size_t num_threads) {
  CodeArrays codes(n, k);
  for_each_run(n, Dictionary::kTile, num_threads, [&](std::size_t begin, std::size_t end) {
    GramPursuit pursuit(dictionary, gram, k, solve_every);
    // Kept by the thread, as it is large.
    thread_local std::vector<float> products;
    products.resize(Dictionary::kTile * dictionary.stride());
    dictionary.products(vectors + begin * dictionary.dim(), end - begin, products.data());
    for (std::size_t row = begin; row < end; ++row)
      pursuit.encode(vectors + row * dictionary.dim(), products.data() + (row - begin) * dictionary.stride(),
                     codes.latents.data() + row * k, codes.values.data() + row * k);
  });
  return codes;
}

// Codes of unit vectors (n, dim) by pursuit in rounds.
inline CodeArrays pursue(const Dictionary& dictionary, const float* vectors, std::size_t n, std::size_t k,
                         std::size_t solve_every, std::size_t num_threads) {
  CodeArrays codes(n, k);
  // Several times as many for a task, as what it needs is large; of few vectors, every thread gets some.
  const std::size_t share = (n + std::max<std::size_t>(num_threads, 1) - 1) / std::max<std::size_t>(num_threads, 1);
  const std::size_t in_step = Pursuit::vectors_in_step(k);
  for_each_run(n, std::clamp<std::size_t>(share, 1, 8 * in_step), num_threads, [&](std::size_t begin, std::size_t end) {
    Pursuit pursuit(dictionary, k, solve_every);
    for (std::size_t row = begin; row < end; row += in_step)
      pursuit.encode(vectors + row * dictionary.dim(), std::min(in_step, end - row), codes.latents.data() + row * k,
                     codes.values.data() + row * k);
  });
  return codes;
}

// The k largest absolute entries with their signs, sorted by latent; a tie goes to the lower latent.
inline void top_k_abs(const float* x, std::size_t n_latents, std::size_t k, std::vector<std::uint32_t>& order,
                      std::uint16_t* latents, float* values) {
  order.resize(n_latents);
  const float least = nearly_reached(x, n_latents, k, largest_magnitude(x, n_latents));
  std::size_t found = kernels().find_at_least(x, n_latents, least, order.data());
  if (found < k) {
    found = n_latents;
    std::iota(order.begin(), order.end(), 0u);
  }
  const auto kth = order.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(order.begin(), kth - 1, order.begin() + static_cast<std::ptrdiff_t>(found),
                   [x](std::uint32_t a, std::uint32_t b) {
                     const float left = std::fabs(x[a]), right = std::fabs(x[b]);
                     return left > right || (left == right && a < b);
                   });
  std::sort(order.begin(), kth);
  for (std::size_t i = 0; i < k; ++i) {
    latents[i] = static_cast<std::uint16_t>(order[i]);
    values[i] = x[order[i]];
  }
}

// Codes of the k largest absolute activations (n, n_latents).
inline CodeArrays top_k_codes(const float* activations, std::size_t n, std::size_t n_latents, std::size_t k,
                              std::size_t num_threads) {
  CodeArrays codes(n, k);
  for_each_run(n, kProjectedRows, num_threads, [&](std::size_t begin, std::size_t end) {
    std::vector<std::uint32_t> order;
    for (std::size_t row = begin; row < end; ++row)
      top_k_abs(activations + row * n_latents, n_latents, k, order, codes.latents.data() + row * k,
                codes.values.data() + row * k);
  });
  return codes;
}

}  // namespace compressae
