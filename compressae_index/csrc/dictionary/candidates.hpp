// The atoms that a round of pursuit chooses among, and the choice.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "dictionary/largest.hpp"
#include "dictionary/support.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

struct Choice {
  std::size_t latent;
  float value;
};

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
    const float largest = keys[kernel_.arg_max_abs(keys, n_groups)];
    const float least = nearly_reached(keys, n_groups, wanted, largest, StrongestProduct::kExponent);
    const std::size_t found = kernel_.find_at_least(keys, n_groups, least, positions_.data());
    taken_.clear();
    latents_.resize(found);
    values_.assign((found + kBlock - 1) / kBlock * kBlock, 0.0f);
    for (std::size_t i = 0; i < found; ++i) {
      const std::uint32_t entry = strongest[positions_[i]];
      latents_[i] = static_cast<std::uint32_t>(StrongestProduct::row(entry, positions_[i], depth));
      values_[i] = StrongestProduct::product(entry);
    }
  }

  std::size_t size() const { return latents_.size(); }
  const std::vector<std::uint32_t>& latents() const { return latents_; }

  // How many a round of n_new atoms is to choose among.
  static std::size_t wanted(std::size_t n_new) { return 96 + 4 * n_new; }

  // Of so many atoms: how many there are in a group, so that a thousand groups can be told apart.
  static std::size_t depth(std::size_t n_latents) {
    constexpr std::size_t kGroups = 1024;
    std::size_t depth = 1;
    while (depth < StrongestProduct::kMostDepth && 2 * depth * kGroups <= n_latents) depth *= 2;
    return depth;
  }

  // Adds the strongest to the support, with its correlation as its value (matching pursuit), unless none explains more
  // than `negligible`, which the first of all sets.
  std::optional<Choice> choose(Support& support, float& negligible) {
    if (size() == 0) return {};
    for (const std::size_t candidate : taken_) values_[candidate] = 0.0f;
    const std::size_t best = kernel_.arg_max_abs(values_.data(), values_.size());
    const float value = values_[best];
    if (support.size() == 0) negligible = Support::kNegligible * std::fabs(value);
    if (!(std::fabs(value) > negligible)) return {};
    support.choose(latents_[best]);
    taken_.push_back(best);
    return Choice{latents_[best], value};
  }

  // (size) correlations with the residual, from which whoever chooses takes the products with what was chosen.
  float* values() { return values_.data(); }

 private:
  const Kernels& kernel_ = kernels();
  std::vector<std::uint32_t> positions_, latents_;
  std::vector<float> values_;       // zeros follow, up to a whole block
  std::vector<std::size_t> taken_;  // of the candidates
};

}  // namespace compressae
