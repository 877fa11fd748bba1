// Orthogonal matching pursuit against a dictionary of unit rows (Pati et al., 1993), of many vectors in step. Each
// round multiplies all residuals with all atoms and keeps the candidates that correlate most with each; the round's
// atoms are chosen among these, whose correlations alone are updated. Correlations choose atoms and are products of
// bytes; the values of the chosen atoms come from products in float32. For large dictionaries: see gram_pursuit.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "dictionary/dictionary.hpp"
#include "dictionary/support.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// Atoms that correlate with a residual: of those that are the strongest of their groups, the best.
class Candidates {
 public:
  // strongest: (n_groups) products of groups of `depth` atoms; they are changed. Finds at
  // least `wanted`, if as many are not 0, and hardly more, none of which is among those left out.
  void find(std::uint32_t* strongest, std::size_t n_groups, std::size_t depth, std::size_t wanted,
            std::initializer_list<const std::vector<std::size_t>*> left_out) {
    constexpr std::size_t kLanes = StrongestProduct::kLanes;
    for (const auto* latents : left_out)
      for (const std::size_t latent : *latents) {
        const std::size_t at = latent / kLanes / depth * kLanes + latent % kLanes;
        if (StrongestProduct::row(strongest[at], at, depth) == latent) strongest[at] = 0;
      }
    // The bits of positive floats are in the order of the floats.
    const auto* keys = reinterpret_cast<const float*>(strongest);
    positions_.resize(n_groups);
    const std::size_t found = kernel_.find_at_least(keys, n_groups, reached(keys, n_groups, wanted), positions_.data());
    const std::size_t padded = (found + kBlock - 1) / kBlock * kBlock;
    latents_.resize(found);
    values_.resize(padded);
    for (std::size_t i = 0; i < found; ++i) {
      const std::uint32_t entry = strongest[positions_[i]];
      latents_[i] = static_cast<std::uint32_t>(StrongestProduct::row(entry, positions_[i], depth));
      values_[i] = StrongestProduct::product(entry);
    }
    std::fill(values_.begin() + static_cast<std::ptrdiff_t>(found), values_.end(), 0.0f);
  }

  std::size_t size() const { return latents_.size(); }
  const std::uint32_t* latents() const { return latents_.data(); }
  std::vector<float>& values() { return values_; }  // zeros follow, up to a whole block

 private:
  // What `wanted` entries reach, and hardly more: the interval that holds it is halved.
  float reached(const float* keys, std::size_t n, std::size_t wanted) const {
    std::uint32_t low = kSmallest, high = __builtin_bit_cast(std::uint32_t, keys[kernel_.arg_max_abs(keys, n)]);
    // Most of the best are not far below the first.
    for (std::uint32_t middle = high - std::min(high - low, kSixteenth); high - low > 1;
         middle = low + (high - low) / 2) {
      const std::size_t above = kernel_.count_at_least(keys, n, __builtin_bit_cast(float, middle));
      (above < wanted ? high : low) = middle;
      if (above >= wanted && above <= wanted + wanted / 4) break;
    }
    return __builtin_bit_cast(float, low);
  }

  // Products that bytes leave of anything are far above 2^-60, whose key this is; kSixteenth is what a sixteenth of a
  // product is below it.
  static constexpr std::uint32_t kSmallest = (127u - 60u) << 24, kSixteenth = 4u << 24;

  const Kernels& kernel_ = kernels();
  std::vector<std::uint32_t> positions_, latents_;
  std::vector<float> values_;
};

class Pursuit {
 public:
  // Vectors to encode in step, in whole tiles: each atom is read once for all of them, and their supports stay in the
  // second-level cache.
  static std::size_t vectors_in_step(std::size_t k) { return std::clamp<std::size_t>(4096 / k / 32 * 32, 32, 256); }

  // Values are solved for, and the residual is formed and its candidates found, as Schedule says; in between each atom
  // takes its correlation as its value (matching pursuit).
  Pursuit(const Dictionary& dictionary, std::size_t k, std::size_t solve_every)
      : dictionary_(dictionary), k_(k), schedule_{k, solve_every}, scratch_(k), atom_(dictionary.length()) {
    while (depth_ < StrongestProduct::kMostDepth && 2 * depth_ * kGroups <= dictionary.n_latents()) depth_ *= 2;
  }

  // vectors: (n, dim) of unit norm. Writes exactly k distinct latents a vector, ascending, and their least-squares
  // values; places that it does not need hold value 0.
  void encode(const float* vectors, std::size_t n, std::uint16_t* latents, float* values) {
    const std::size_t dim = dictionary_.dim();
    while (states_.size() < n) states_.emplace_back(k_);
    residuals_.assign(vectors, vectors + n * dim);
    active_.clear();
    for (std::size_t i = 0; i < n; ++i) {
      states_[i].support.clear();
      states_[i].next_solve = schedule_.solve_every;
      active_.push_back(i);
    }
    while (!active_.empty()) {
      const RoundedVectors rounded = dictionary_.bytes().rounded(residuals_.data(), active_.size(), Planes::kRounded);
      const std::size_t n_groups = dictionary_.bytes().n_groups(depth_);
      // Not a power of two, or they would share their places in caches.
      const std::size_t stride = n_groups + kLanes;
      strongest_.resize(active_.size() * stride);
      dictionary_.bytes().strongest(rounded, depth_, strongest_.data(), stride);
      std::size_t left = 0;
      for (std::size_t row = 0; row < active_.size(); ++row) {
        const std::size_t i = active_[row];
        State& state = states_[i];
        candidates_.find(strongest_.data() + row * stride, n_groups, depth_,
                         kCandidates + kCandidatesAnAtom * n_new(state),
                         {&state.support.latents(), &state.support.unusable()});
        if (advance(state, vectors + i * dim)) {
          state.support.write(k_, latents + i * k_, values + i * k_, scratch_);
          continue;
        }
        write_residual(state.support, vectors + i * dim, residuals_.data() + left * dim);
        active_[left++] = i;
      }
      active_.resize(left);
    }
  }

 private:
  struct State {
    explicit State(std::size_t k) : support(k) {}

    Support support;
    std::size_t next_solve = 0;  // the size of the support to solve at
    float negligible = 0.0f;     // correlations that explain nothing
  };

  // Atoms of the next round.
  std::size_t n_new(const State& state) const { return std::min(state.next_solve, k_) - state.support.size(); }

  // One round: chooses atoms and solves for their values. Returns whether that was the last.
  bool advance(State& state, const float* x) {
    Support& support = state.support;
    const bool chose = choose(state);
    support.solve(dictionary_, x, state.negligible, scratch_);
    if (!chose || support.size() == k_ || support.unusable().size() >= k_) return true;
    if (support.size() >= state.next_solve) state.next_solve = schedule_.after(state.next_solve);
    return false;
  }

  // Chooses atoms until it is time to solve, or candidates explain no more. Returns whether it chose any.
  bool choose(State& state) {
    Support& support = state.support;
    std::vector<float>& values = candidates_.values();
    const std::size_t wanted = std::min(state.next_solve, k_);
    taken_.clear();
    bool chose = false;
    while (candidates_.size() > 0 && support.size() < wanted) {
      const std::size_t best = kernel_.arg_max_abs(values.data(), values.size());
      const float correlation = values[best];
      if (support.size() == 0) state.negligible = Support::kNegligible * std::fabs(correlation);
      if (!(std::fabs(correlation) > state.negligible)) break;
      chose = true;
      const std::uint32_t latent = candidates_.latents()[best];
      support.choose(latent);
      taken_.push_back(best);
      values[best] = 0.0f;
      if (support.size() < wanted) update(latent, correlation);
    }
    return chose;
  }

  // Takes a chosen atom times its value from the residual that candidates correlate with.
  void update(std::size_t latent, float value) {
    const std::size_t n = candidates_.size();
    rows_.resize(std::max(n, rows_.size()));
    sums_.resize(rows_.size());
    const std::uint32_t* latents = candidates_.latents();
    const std::uint8_t** rows = rows_.data();
    for (std::size_t i = 0; i < n; ++i) rows[i] = dictionary_.row(latents[i]);
    const std::int32_t added = ProductRows::kAdded * dictionary_.copy_bytes(latent, atom_.data());
    kernel_.byte_dots(rows, n, atom_.data(), dictionary_.length(), sums_.data());
    const float* scales = dictionary_.bytes().scales();
    const std::int32_t* sums = sums_.data();
    float* values = candidates_.values().data();
    const float factor = value * scales[latent];
    // Gathered apart, so that the rest is done in vectors.
    scales_.resize(rows_.size());
    float* factors = scales_.data();
    for (std::size_t i = 0; i < n; ++i) factors[i] = scales[latents[i]];
    for (std::size_t i = 0; i < n; ++i) values[i] -= factor * factors[i] * static_cast<float>(sums[i] - added);
    for (const std::size_t candidate : taken_) values[candidate] = 0.0f;
  }

  void write_residual(const Support& support, const float* x, float* residual) const {
    std::copy_n(x, dictionary_.dim(), residual);
    for (std::size_t i = 0; i < support.size(); ++i) {
      const float* atom = dictionary_.atom(support.latents()[i]);
      const float value = support.values()[i];
      for (std::size_t j = 0; j < dictionary_.dim(); ++j) residual[j] -= value * atom[j];
    }
  }

  static constexpr std::size_t kCandidates = 96, kCandidatesAnAtom = 4;
  // Groups to tell apart at least, where there are as many atoms.
  static constexpr std::size_t kGroups = 1024;
  const Kernels& kernel_ = kernels();
  const Dictionary& dictionary_;
  std::size_t k_;
  Schedule schedule_;
  std::size_t depth_ = 1;  // atoms of a group
  Support::Scratch scratch_;
  std::vector<State> states_;
  std::vector<std::size_t> active_;
  std::vector<float> residuals_;          // (active, dim)
  std::vector<std::uint32_t> strongest_;  // (active, groups), padded
  Candidates candidates_;
  std::vector<std::size_t> taken_;  // candidates that may not be chosen
  std::vector<std::int8_t> atom_;
  std::vector<const std::uint8_t*> rows_;
  std::vector<std::int32_t> sums_;
  std::vector<float> scales_;
};

}  // namespace compressae
