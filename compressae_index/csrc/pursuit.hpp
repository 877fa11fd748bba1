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
#include "half.hpp"

namespace compressae {

class Pursuit {
 public:
  // gram: (n_latents, stride) in half precision, borrowed; a row is padded with zeros to whole blocks. The
  // residual's correlations are recomputed from least-squares values whenever the support has grown by
  // solve_every atoms, or by a quarter where that is more; in between each atom takes its correlation as its
  // value (matching pursuit).
  Pursuit(const std::uint16_t* gram, std::size_t n_latents, std::size_t stride, std::size_t k,
          std::size_t solve_every)
      : gram_(gram),
        n_latents_(n_latents),
        stride_(stride),
        k_(k),
        solve_every_(solve_every),
        residual_(stride),
        cholesky_(k * k),
        inverse_(k),
        forward_(k),
        solution_(k) {}

  // correlations: (n_latents) products of the row with the dictionary. Writes exactly k distinct latents,
  // ascending, and their least-squares values; places that the row does not need hold value 0.
  void encode(const float* correlations, std::uint16_t* latents, float* values) {
    std::memcpy(residual_.data(), correlations, n_latents_ * sizeof(float));
    std::fill(residual_.begin() + static_cast<std::ptrdiff_t>(n_latents_), residual_.end(), 0.0f);
    support_.clear();
    rows_.clear();
    unusable_.clear();
    std::size_t next_solve = solve_every_;
    float negligible = 0.0f;
    while (support_.size() < k_) {
      const std::size_t latent = kernel_.arg_max_abs(residual_.data(), stride_);
      const float correlation = residual_[latent];
      if (support_.empty()) negligible = kNegligible * std::fabs(correlation);
      if (std::fabs(correlation) <= negligible) break;  // nothing is left to explain
      if (!extend_cholesky(latent, correlations[latent])) {
        unusable_.push_back(latent);  // it depends on the atoms already chosen
        residual_[latent] = 0.0f;
        continue;
      }
      support_.push_back(latent);
      rows_.push_back(gram_row(latent));
      if (support_.size() == k_) break;
      if (support_.size() == next_solve) {
        next_solve += std::max(solve_every_, next_solve / 4);
        solve();
        std::memcpy(residual_.data(), correlations, n_latents_ * sizeof(float));
        subtract(rows_.data(), solution_.data(), rows_.size());
      } else {
        subtract(&rows_.back(), &correlation, 1);
      }
      for (const std::size_t chosen : support_) residual_[chosen] = 0.0f;
      for (const std::size_t skipped : unusable_) residual_[skipped] = 0.0f;
    }
    solve();
    write(latents, values);
  }

 private:
  const std::uint16_t* gram_row(std::size_t latent) const { return gram_ + latent * stride_; }

  void subtract(const std::uint16_t* const* rows, const float* values, std::size_t n_rows) {
    weights_.assign(values, values + n_rows);
    for (float& weight : weights_) weight = -weight;
    kernel_.add_half_rows(rows, weights_.data(), n_rows, stride_, residual_.data());
  }

  // Adds a row to the Cholesky factor of the support's Gram matrix and to the forward substitution.
  bool extend_cholesky(std::size_t latent, float correlation) {
    const std::size_t size = support_.size();
    float* row = cholesky_.data() + size * k_;
    for (std::size_t i = 0; i < size; ++i) {
      const float* other = cholesky_.data() + i * k_;
      row[i] = (from_half(rows_[i][latent]) - kernel_.dot(row, other, i)) * inverse_[i];
    }
    const float pivot = 1.0f - kernel_.dot(row, row, size);
    if (!(pivot > kSmallestPivot)) return false;
    inverse_[size] = 1.0f / std::sqrt(pivot);
    forward_[size] = (correlation - kernel_.dot(row, forward_.data(), size)) * inverse_[size];
    return true;
  }

  // Back substitution, a row of the factor at a time.
  void solve() {
    const std::size_t size = support_.size();
    std::copy_n(forward_.begin(), size, solution_.begin());
    for (std::size_t i = size; i-- > 0;) {
      const float* row = cholesky_.data() + i * k_;
      solution_[i] *= inverse_[i];
      for (std::size_t j = 0; j < i; ++j) solution_[j] -= solution_[i] * row[j];
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
  static constexpr float kSmallestPivot = 1e-3f;
  // Of the first correlation: what the Gram matrix's half precision leaves of a residual of zero.
  static constexpr float kNegligible = 1e-3f;

  const Kernels& kernel_ = kernels();
  const std::uint16_t* gram_;
  std::size_t n_latents_;
  std::size_t stride_;
  std::size_t k_;
  std::size_t solve_every_;
  std::vector<float> residual_;  // correlations of the residual, padded with zeros to whole blocks
  std::vector<float> cholesky_;  // (k, k), below the diagonal
  std::vector<float> inverse_;   // 1 / the diagonal
  std::vector<float> forward_;
  std::vector<float> solution_;
  std::vector<float> weights_;
  std::vector<std::size_t> support_;
  std::vector<const std::uint16_t*> rows_;  // Gram rows of the support
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
