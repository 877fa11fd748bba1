// Orthogonal matching pursuit against a dictionary of unit rows (Pati et al., 1993), with the Gram matrix
// (Rubinstein et al., 2008): the residual is never formed, only its correlations with the dictionary.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu.hpp"

namespace compressae {

class Pursuit {
 public:
  // gram: (n_latents, n_latents), borrowed. Correlations are recomputed from the least-squares values every
  // solve_every atoms; in between each atom takes its correlation as its value (matching pursuit).
  Pursuit(const float* gram, std::size_t n_latents, std::size_t k, std::size_t solve_every)
      : gram_(gram),
        n_latents_(n_latents),
        k_(k),
        solve_every_(solve_every),
        residual_((n_latents + kBlock - 1) / kBlock * kBlock),
        maxima_(residual_.size() / kBlock),
        cholesky_(k * k),
        forward_(k),
        solution_(k) {}

  // correlations: (n_latents) products of the row with the dictionary. Writes exactly k distinct latents,
  // ascending, and their least-squares values; places that the row does not need hold value 0.
  void encode(const float* correlations, std::uint16_t* latents, float* values) {
    std::memcpy(residual_.data(), correlations, n_latents_ * sizeof(float));
    std::fill(residual_.begin() + static_cast<std::ptrdiff_t>(n_latents_), residual_.end(), 0.0f);
    support_.clear();
    unusable_.clear();
    while (support_.size() < k_) {
      const std::size_t latent = strongest();
      if (residual_[latent] == 0.0f) break;  // nothing is left to explain
      if (!extend_cholesky(latent, correlations[latent])) {
        unusable_.push_back(latent);  // it depends on the atoms already chosen
        residual_[latent] = 0.0f;
        continue;
      }
      support_.push_back(latent);
      if (support_.size() == k_) break;
      if (support_.size() % solve_every_ == 0) {
        solve();
        std::memcpy(residual_.data(), correlations, n_latents_ * sizeof(float));
        for (std::size_t i = 0; i < support_.size(); ++i) subtract(support_[i], solution_[i]);
      } else {
        subtract(latent, residual_[latent]);
      }
      for (const std::size_t chosen : support_) residual_[chosen] = 0.0f;
      for (const std::size_t skipped : unusable_) residual_[skipped] = 0.0f;
    }
    solve();
    write(latents, values);
  }

 private:
  const float* gram_row(std::size_t latent) const { return gram_ + latent * n_latents_; }

  void subtract(std::size_t latent, float value) {
    kernels().add_scaled(n_latents_, -value, gram_row(latent), residual_.data());
  }

  // The latent of the largest absolute residual correlation; a tie goes to the lower one.
  std::size_t strongest() {
    kernels().block_max_abs(residual_.data(), residual_.size(), maxima_.data());
    const auto block = std::max_element(maxima_.begin(), maxima_.end());
    const std::size_t begin = static_cast<std::size_t>(block - maxima_.begin()) * kBlock;
    const std::size_t end = std::min(begin + kBlock, n_latents_);
    for (std::size_t latent = begin; latent < end; ++latent)
      if (std::fabs(residual_[latent]) == *block) return latent;
    return begin;
  }

  // Adds a row to the Cholesky factor of the support's Gram matrix and to the forward substitution.
  bool extend_cholesky(std::size_t latent, float correlation) {
    const std::size_t size = support_.size();
    float* row = cholesky_.data() + size * k_;
    const float* gram = gram_row(latent);
    float pivot = gram[latent], target = correlation;
    for (std::size_t i = 0; i < size; ++i) {
      const float* other = cholesky_.data() + i * k_;
      float entry = gram[support_[i]];
      for (std::size_t j = 0; j < i; ++j) entry -= row[j] * other[j];
      row[i] = entry / other[i];
      pivot -= row[i] * row[i];
      target -= row[i] * forward_[i];
    }
    if (!(pivot > kSmallestPivot)) return false;
    row[size] = std::sqrt(pivot);
    forward_[size] = target / row[size];
    return true;
  }

  void solve() {
    for (std::size_t i = support_.size(); i-- > 0;) {
      float value = forward_[i];
      for (std::size_t j = i + 1; j < support_.size(); ++j) value -= cholesky_[j * k_ + i] * solution_[j];
      solution_[i] = value / cholesky_[i * k_ + i];
    }
  }

  void write(std::uint16_t* latents, float* values) {
    pairs_.clear();
    for (std::size_t i = 0; i < support_.size(); ++i)
      pairs_.push_back({static_cast<std::uint16_t>(support_[i]), solution_[i]});
    for (std::size_t latent = 0; pairs_.size() < k_; ++latent)
      if (std::find(support_.begin(), support_.end(), latent) == support_.end())
        pairs_.push_back({static_cast<std::uint16_t>(latent), 0.0f});
    std::sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) { return a.latent < b.latent; });
    for (std::size_t i = 0; i < k_; ++i) {
      latents[i] = pairs_[i].latent;
      values[i] = pairs_[i].value;
    }
  }

  struct Pair {
    std::uint16_t latent;
    float value;
  };

  // Of a unit atom, the share outside of the span of the chosen ones; below this, float32 solves nothing.
  static constexpr float kSmallestPivot = 1e-4f;

  const float* gram_;
  std::size_t n_latents_;
  std::size_t k_;
  std::size_t solve_every_;
  std::vector<float> residual_;  // correlations of the residual, padded with zeros to whole blocks
  std::vector<float> maxima_;
  std::vector<float> cholesky_;  // (k, k), lower triangle
  std::vector<float> forward_;
  std::vector<float> solution_;
  std::vector<std::size_t> support_;
  std::vector<std::size_t> unusable_;
  std::vector<Pair> pairs_;
};

// The k largest absolute entries with their signs, sorted by latent; a tie goes to the lower latent.
inline void top_k_abs(const float* x, std::size_t n_latents, std::size_t k, std::vector<std::uint16_t>& order,
                      std::uint16_t* latents, float* values) {
  order.resize(n_latents);
  for (std::size_t j = 0; j < n_latents; ++j) order[j] = static_cast<std::uint16_t>(j);
  const auto kth = order.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(order.begin(), kth - 1, order.end(), [x](std::uint16_t a, std::uint16_t b) {
    const float left = std::fabs(x[a]), right = std::fabs(x[b]);
    return left > right || (left == right && a < b);
  });
  std::sort(order.begin(), kth);
  for (std::size_t i = 0; i < k; ++i) {
    latents[i] = order[i];
    values[i] = x[order[i]];
  }
}

}  // namespace compressae
