// Orthogonal matching pursuit against a dictionary of unit rows (Pati et al., 1993), with the Gram matrix
// (Rubinstein et al., 2008): the residual is never formed, only its correlations with all atoms, in bytes. For small
// dictionaries: the matrix takes n_latents^2 bytes, and each atom that is chosen reads a row of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/thread_pool.hpp"
#include "dictionary/dictionary.hpp"
#include "dictionary/support.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// The products of all atoms with each other, rounded to bytes, the diagonal left out.
class GramBytes {
 public:
  GramBytes(const Dictionary& dictionary, std::size_t num_threads)
      : stride_(dictionary.stride()), bytes_(dictionary.n_latents() * stride_), scales_(dictionary.n_latents()) {
    constexpr std::size_t kTile = Dictionary::kTile;
    const std::size_t n = dictionary.n_latents();
    ThreadPool::instance().parallel_for((n + kTile - 1) / kTile, num_threads, [&](std::size_t task) {
      const std::size_t first = task * kTile, count = std::min(kTile, n - first);
      std::vector<float> products(count * stride_);
      dictionary.products(dictionary.atom(first), count, products.data());
      for (std::size_t latent = first; latent < first + count; ++latent) {
        float* row = products.data() + (latent - first) * stride_;
        row[latent] = 0.0f;
        scales_[latent] = step_of(row, stride_);
        round_to(row, stride_, scales_[latent],
                 [&](std::size_t i, float byte) { bytes_[latent * stride_ + i] = static_cast<std::int8_t>(byte); });
      }
    });
  }

  const std::int8_t* row(std::size_t latent) const { return bytes_.data() + latent * stride_; }
  float scale(std::size_t latent) const { return scales_[latent]; }

 private:
  std::size_t stride_;
  std::vector<std::int8_t> bytes_;
  std::vector<float> scales_;
};

class GramPursuit {
 public:
  // The residual's correlations are computed anew when values are solved for, as Schedule says; in between each atom
  // takes its correlation as its value (matching pursuit).
  GramPursuit(const Dictionary& dictionary, const GramBytes& gram, std::size_t k, std::size_t solve_every)
      : dictionary_(dictionary),
        gram_(gram),
        k_(k),
        schedule_{k, solve_every},
        support_(k),
        scratch_(k),
        residual_(dictionary.stride()) {}

  // x: a vector of unit norm, and its products with the dictionary. Writes as Support::write does.
  void encode(const float* x, const float* products, std::uint16_t* latents, float* values) {
    std::memcpy(residual_.data(), products, residual_.size() * sizeof(float));
    support_.clear();
    std::size_t next_solve = schedule_.solve_every;
    float negligible = 0.0f;
    for (;;) {
      const std::size_t latent = kernel_.arg_max_abs(residual_.data(), residual_.size());
      const float correlation = residual_[latent];
      if (support_.size() == 0) negligible = Support::kNegligible * std::fabs(correlation);
      const bool explained = std::fabs(correlation) <= negligible;
      if (!explained) support_.choose(latent);
      if (explained || support_.size() == std::min(next_solve, k_)) {
        support_.solve(dictionary_, x, negligible, scratch_);
        if (explained || support_.size() == k_ || support_.unusable().size() >= k_) break;
        if (support_.size() >= next_solve) next_solve = schedule_.after(next_solve);
        std::memcpy(residual_.data(), products, residual_.size() * sizeof(float));
        subtract(0, support_.values());
      } else {
        subtract(support_.size() - 1, &correlation);
      }
      for (const std::size_t chosen : support_.latents()) residual_[chosen] = 0.0f;
      for (const std::size_t skipped : support_.unusable()) residual_[skipped] = 0.0f;
    }
    support_.write(k_, latents, values, scratch_);
  }

 private:
  // Takes the chosen atoms from `first` on, times their values, from the residual.
  void subtract(std::size_t first, const float* values) {
    rows_.clear();
    weights_.clear();
    for (std::size_t i = first; i < support_.size(); ++i) {
      const std::size_t latent = support_.latents()[i];
      rows_.push_back(gram_.row(latent));
      weights_.push_back(-values[i - first] * gram_.scale(latent));
    }
    kernel_.add_byte_rows(rows_.data(), weights_.data(), weights_.size(), residual_.size(), residual_.data());
  }

  const Kernels& kernel_ = kernels();
  const Dictionary& dictionary_;
  const GramBytes& gram_;
  std::size_t k_;
  Schedule schedule_;
  Support support_;
  Support::Scratch scratch_;
  std::vector<float> residual_;  // correlations of the residual, padded with zeros to whole blocks
  std::vector<float> weights_;
  std::vector<const std::int8_t*> rows_;
};

}  // namespace compressae
