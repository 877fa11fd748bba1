// Compares the kernels of every instruction set that this processor has with the plain loops, which are the oracle, on
// random inputs and on those at the limits of what kernels.hpp allows. Floats are small whole numbers, whose sums are
// exact in any order, so that results are equal. Arrays end where the kernels may no longer read or write: a build with
// COMPRESSAE_SANITIZE=address checks that, too.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "codes/packed.hpp"
#include "codes/residuals.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {
namespace {

constexpr std::size_t kRounds = 300;

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::size_t below(std::size_t n) { return engine_() % n; }
  bool one_in(std::size_t n) { return below(n) == 0; }
  template <typename T>
  std::vector<T> integers(std::size_t n) {
    std::vector<T> values(n);
    for (T& value : values) value = static_cast<T>(engine_());
    return values;
  }

  // The smallest or the largest.
  template <typename T>
  T extreme() {
    return one_in(2) ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max();
  }

  // From -8 to 8.
  std::vector<float> whole_floats(std::size_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = static_cast<float>(below(17)) - 8.0f;
    return values;
  }

  // k of the first n numbers, ascending.
  std::vector<std::uint16_t> some_of(std::size_t n, std::size_t k) {
    std::vector<std::uint16_t> numbers(n);
    std::iota(numbers.begin(), numbers.end(), std::uint16_t{0});
    std::shuffle(numbers.begin(), numbers.end(), engine_);
    numbers.resize(k);
    std::sort(numbers.begin(), numbers.end());
    return numbers;
  }

 private:
  std::mt19937_64 engine_;
};

// One instruction set against the plain loops, with inputs of one seed.
struct Trial {
  const Target& target;
  std::uint64_t seed;
  Random random{seed};
  std::size_t& failures;

  const Kernels& tested() const { return *target.kernels; }
  static const Kernels& plain() { return kernels_plain; }

  void expect(bool holds, const char* what) {
    if (holds) return;
    ++failures;
    std::printf("%s, seed %llu: %s is wrong\n", target.name, static_cast<unsigned long long>(seed), what);
  }
};

void check_accumulate(Trial& trial) {
  constexpr std::size_t kDocuments = 4096;
  Random& random = trial.random;
  std::vector<std::vector<std::uint16_t>> ids;
  std::vector<std::vector<std::int8_t>> values;
  std::vector<Postings> lists;
  for (std::size_t i = random.below(5); i-- > 0;) {
    const std::size_t count = random.below(random.one_in(2) ? 20 : 300);
    ids.push_back(random.some_of(kDocuments, count));
    values.push_back(random.integers<std::int8_t>(count));
    const auto weight = static_cast<std::int16_t>(static_cast<int>(random.below(65535)) - 32767);
    const auto damping = static_cast<std::int16_t>(random.one_in(2) ? 0 : random.below(16000));
    const auto most = random.one_in(4) ? std::int16_t{-32767} : weight;
    // Of sound files, weights that are damped stay within 16 bits.
    const auto held = static_cast<std::int16_t>(damping == 0 ? most : most / 2);
    lists.push_back({ids.back().data(), values.back().data(), count, held, damping});
  }
  auto expected = random.integers<std::int16_t>(kDocuments);
  auto actual = expected;  // of any size, as in a damaged file: sums wrap around
  trial.plain().accumulate(lists.data(), lists.size(), expected.data());
  trial.tested().accumulate(lists.data(), lists.size(), actual.data());
  trial.expect(actual == expected, "accumulate");
}

// Norms are powers of two, so that all is exact.
void check_lengthen(Trial& trial) {
  Random& random = trial.random;
  const std::size_t count = random.below(300);
  std::vector<std::uint16_t> norms(count);
  for (std::uint16_t& norm : norms) norm = static_cast<std::uint16_t>((13 + random.below(6)) << 11);
  auto expected = random.integers<std::int16_t>(count), actual = expected;
  const Lengthening by{0.25f, -static_cast<float>(random.below(64)), 4.0f, static_cast<float>(random.below(9))};
  for (std::size_t i = 0; i < count; ++i) {
    const float norm = length_of(norms[i]);
    const float steps = (by.score * expected[i] + by.length * norm + by.shift) * norm + by.offset;
    expected[i] = static_cast<std::int16_t>(std::clamp(steps, -Lengthening::kMost, Lengthening::kMost));
  }
  trial.tested().lengthen(norms.data(), count, by, actual.data());
  trial.expect(actual == expected, "lengthen");
  trial.expect(length_of(16 << 11) == 1.0f && half_square(17 << 11) == 2.0f, "length_of");
}

// What has one form for all instruction sets is compared with the obvious.
void check_thresholds(Trial& trial) {
  Random& random = trial.random;
  const std::size_t n_groups = kGroup * (1 + random.below(4)), count = n_groups * (1 + random.below(5));
  const auto scores = random.integers<std::int16_t>(count);
  std::vector<std::int16_t> expected(n_groups, -32768), actual(n_groups);
  for (std::size_t i = 0; i < count; ++i) expected[i % n_groups] = std::max(expected[i % n_groups], scores[i]);
  trial.tested().group_maxima(scores.data(), count, n_groups, actual.data());
  trial.expect(actual == expected, "group_maxima");
  for (const std::int16_t threshold : {std::int16_t{-32768}, std::int16_t{32767}, scores[0]}) {
    const auto above =
        std::count_if(scores.begin(), scores.end(), [=](std::int16_t score) { return score > threshold; });
    trial.expect(trial.tested().count_above(scores.data(), count, threshold) == static_cast<std::size_t>(above),
                 "count_above");
  }
  const auto bytes = random.integers<std::uint8_t>(random.below(40));
  int n_bits = 0;
  for (const std::uint8_t byte : bytes) n_bits += std::popcount(byte);
  trial.expect(trial.tested().count_bits(bytes.data(), bytes.size()) == static_cast<std::size_t>(n_bits), "count_bits");
}

struct Harvest {
  std::vector<std::int16_t> scores, hits;
  std::vector<std::uint16_t> positions;

  Harvest(const Kernels& kernels, std::vector<std::int16_t> of, std::size_t end, std::int16_t threshold,
          const std::uint8_t* allowed)
      : scores(std::move(of)) {
    for (std::size_t at = 0; at < end;) {
      std::vector<std::uint16_t> some(kHits + kHitSlack);
      std::vector<std::int16_t> some_hits(kHits + kHitSlack);
      const auto n = static_cast<std::ptrdiff_t>(
          kernels.harvest(scores.data(), at, end, threshold, allowed, some.data(), some_hits.data()));
      positions.insert(positions.end(), some.begin(), some.begin() + n);
      hits.insert(hits.end(), some_hits.begin(), some_hits.begin() + n);
    }
  }

  bool operator==(const Harvest&) const = default;
};

void check_harvest(Trial& trial) {
  Random& random = trial.random;
  const std::size_t count = kGroup * (1 + random.below(12)), end = random.one_in(3) ? count : 1 + random.below(count);
  const int range = random.one_in(2) ? 65536 : 100;
  std::vector<std::int16_t> scores(count);
  for (std::int16_t& score : scores)
    score = static_cast<std::int16_t>(static_cast<int>(random.below(static_cast<std::size_t>(range))) - range / 2);
  const auto allowed = random.integers<std::uint8_t>((end + 7) / 8);
  const int few = range / 2 - 1 - range / 64, many = -range / 2;
  for (const int threshold : {few, many, 32767, static_cast<int>(scores[0])})
    for (const std::uint8_t* bits : {static_cast<const std::uint8_t*>(nullptr), allowed.data()}) {
      const auto bound = static_cast<std::int16_t>(threshold);
      trial.expect(
          Harvest(trial.tested(), scores, end, bound, bits) == Harvest(trial.plain(), scores, end, bound, bits),
          "harvest");
    }
}

void check_select(Trial& trial) {
  Random& random = trial.random;
  const std::size_t count = kBlock * (1 + random.below(12));
  std::vector<float> x = random.whole_floats(count);  // with many ties
  if (random.one_in(2)) x[random.below(count)] = 9.0f;
  if (random.one_in(20)) std::fill(x.begin(), x.end(), 0.0f);
  trial.expect(trial.tested().arg_max_abs(x.data(), count) == trial.plain().arg_max_abs(x.data(), count),
               "arg_max_abs");

  x.resize(count - random.below(kBlock));
  x[random.below(x.size())] = std::numeric_limits<float>::quiet_NaN();
  x[random.below(x.size())] = -std::numeric_limits<float>::infinity();
  for (const float least : {0.0f, 2.0f, std::fabs(x[0])}) {
    const auto reached = std::count_if(x.begin(), x.end(), [=](float entry) { return std::fabs(entry) >= least; });
    trial.expect(trial.tested().count_at_least(x.data(), x.size(), least) == static_cast<std::size_t>(reached),
                 "count_at_least");
    std::vector<std::uint32_t> expected(x.size()), actual(x.size());
    expected.resize(trial.plain().find_at_least(x.data(), x.size(), least, expected.data()));
    actual.resize(trial.tested().find_at_least(x.data(), x.size(), least, actual.data()));
    trial.expect(actual == expected, "find_at_least");
  }
}

void check_code_dots(Trial& trial, const std::vector<float>& u) {
  constexpr std::size_t kRows = 4, kSlack = 64;
  Random& random = trial.random;
  // At times long enough that rows leave the kernels' buffers.
  const std::size_t n_latents = 1 + random.below(random.one_in(3) ? 65536 : 300);
  const std::size_t k = 1 + random.below(std::min<std::size_t>(n_latents, random.one_in(4) ? 1500 : 70));
  const auto latents = random.some_of(n_latents, k);
  const auto values = random.integers<std::int8_t>(k);
  trial.expect(trial.tested().gather_dot(latents.data(), values.data(), k, u.data()) ==
                   trial.plain().gather_dot(latents.data(), values.data(), k, u.data()),
               "gather_dot");

  const std::size_t value_bits = 2 + random.below(7);
  PackedLayout layout = packed_layout(n_latents, k, value_bits);
  std::vector<float> levels = random.whole_floats(std::size_t{1} << (value_bits - 1));
  set_levels(layout, levels.data());
  std::vector<std::uint8_t> rows(kRows * layout.row_bytes + kSlack);
  for (std::size_t r = 0; r < kRows; ++r) {
    auto codes = random.integers<std::uint8_t>(k);
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(code & ((1u << value_bits) - 1));
    const std::uint16_t is_short = random.one_in(4) ? 0x8000 : 0;
    const auto scale = static_cast<std::uint16_t>(random.below(0x4000) | is_short);
    pack_row(layout, latents.data(), codes.data(), scale, rows.data() + r * layout.row_bytes);
  }
  for (int damaged = 0; damaged < 3; ++damaged) {
    std::vector<float> expected(kRows), actual(kRows);
    trial.plain().packed_dots(layout, rows.data(), kRows, u.data(), expected.data());
    trial.tested().packed_dots(layout, rows.data(), kRows, u.data(), actual.data());
    trial.expect(actual == expected, "packed_dots");
    const std::size_t damage = 2 + random.below(layout.row_bytes - 2);  // not of the scale, which stays finite
    rows[damage] = static_cast<std::uint8_t>(rows[damage] ^ (1u << random.below(8)));
  }
}

void check_residual_dots(Trial& trial) {
  constexpr std::size_t kSlack = 63;  // 64 bytes from the last of a row on
  constexpr std::size_t kGroupDims = ResidualLayout::kGroupDims, kQueryDims = ResidualLayout::kQueryDims;
  Random& random = trial.random;
  for (const std::size_t bits : {1u, 2u, 3u, 4u, 6u})
    for (std::size_t n_groups = 1; n_groups <= 9; ++n_groups) {
      const std::size_t dim = kGroupDims * n_groups - random.below(kGroupDims);
      ResidualLayout layout = ResidualRows(dim, bits).layout();
      // Any levels, or those of the largest sums.
      const bool is_extreme = random.one_in(4);
      const auto levels = random.integers<std::uint8_t>(64);
      const auto extreme = random.extreme<std::uint8_t>();
      for (std::size_t i = 0; i < 64; ++i) layout.levels[i] = is_extreme ? extreme : levels[i];
      const std::size_t n_rows = 1 + random.below(6);
      const auto rows = random.integers<std::uint8_t>(n_rows * layout.row_bytes + kSlack);
      std::vector<std::int8_t> query((dim + kQueryDims - 1) / kQueryDims * kQueryDims);
      const auto entries = random.integers<std::int8_t>(dim);
      const auto most = random.extreme<std::int8_t>();
      for (std::size_t i = 0; i < dim; ++i) query[i] = is_extreme ? most : entries[i];
      std::vector<std::int32_t> expected(n_rows), actual(n_rows);
      trial.plain().residual_dots(layout, rows.data(), n_rows, query.data(), expected.data());
      trial.tested().residual_dots(layout, rows.data(), n_rows, query.data(), actual.data());
      trial.expect(actual == expected, "residual_dots");
    }
}

// The plain loop against what rows are written and read by.
void check_residual_rows(Trial& trial) {
  Random& random = trial.random;
  for (const std::size_t bits : {1u, 2u, 3u, 4u, 6u}) {
    const std::size_t dim = 1 + random.below(200), kQueryDims = ResidualLayout::kQueryDims;
    const ResidualRows form(dim, bits);
    const std::vector<float> target = random.whole_floats(dim), sum = random.whole_floats(dim);
    std::vector<std::uint8_t> row(form.row_bytes() + 63);
    form.encode(target.data(), sum.data(), row.data());
    std::vector<std::int8_t> query((dim + kQueryDims - 1) / kQueryDims * kQueryDims);
    const auto entries = random.integers<std::int8_t>(dim);
    std::copy(entries.begin(), entries.end(), query.begin());
    std::int32_t expected = 0, actual = 0;
    for (std::size_t i = 0; i < dim; ++i) expected += form.level(row.data(), i) * query[i];
    trial.tested().residual_dots(form.layout(), row.data(), 1, query.data(), &actual);
    trial.expect(actual == expected, "residual_dots of an encoded row");
  }
}

void check_widen(Trial& trial) {
  Random& random = trial.random;
  const std::size_t count = random.below(100);
  auto halves = random.integers<std::uint16_t>(count);
  for (std::uint16_t& half : halves)
    if (!is_finite_half(half)) half = static_cast<std::uint16_t>(half & 0x83ff);  // then subnormal
  std::vector<float> expected(count), actual(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float fraction = static_cast<float>(halves[i] & 0x3ff), sign = (halves[i] & 0x8000) != 0 ? -1.0f : 1.0f;
    const int exponent = halves[i] >> 10 & 31;
    expected[i] = sign * std::ldexp(exponent == 0 ? fraction : fraction + 1024.0f, std::max(exponent, 1) - 25);
  }
  trial.tested().widen(halves.data(), count, actual.data());
  trial.expect(actual == expected, "widen");
}

std::vector<std::int32_t> surpluses(const Kernels& kernels, const std::vector<std::int8_t>& queries,
                                    std::size_t length) {
  std::vector<std::int32_t> surpluses(queries.size() / length);
  for (std::size_t q = 0; q < surpluses.size(); ++q)
    surpluses[q] = kernels.surplus(queries.data() + q * length, length);
  return surpluses;
}

void check_products(Trial& trial) {
  Random& random = trial.random;
  const std::size_t n_blocks = 1 + random.below(3), steps = 1 + random.below(30), length = ProductRows::kStep * steps;
  const std::size_t n_queries = random.below(random.one_in(2) ? 9 : 80), n_planes = random.one_in(2) ? 1 : 3;
  const std::size_t n_rows = kBlock * (n_blocks - 1) + 1 + random.below(kBlock);
  auto entries = random.integers<std::uint8_t>(n_blocks * kBlock * length);
  std::vector<float> scales(n_blocks * kBlock);  // powers of two keep products exact
  for (float& scale : scales) scale = random.one_in(2) ? 0.25f : -2.0f;
  auto query_entries = random.integers<std::int8_t>(n_queries * n_planes * length);
  if (random.one_in(2)) std::fill(query_entries.begin(), query_entries.end(), random.extreme<std::int8_t>());
  if (random.one_in(2)) std::fill(entries.begin(), entries.end(), random.extreme<std::uint8_t>());
  const std::vector<float> query_scales(n_queries * n_planes, 0.5f);
  const ProductRows rows{entries.data(), scales.data(), n_blocks, steps};
  std::vector<float> expected = random.whole_floats(n_queries * n_rows), actual = expected;
  const auto multiply = [&](const Kernels& kernels, float* products) {
    const auto own = surpluses(kernels, query_entries, length);
    kernels.multiply(rows, n_rows, {query_entries.data(), query_scales.data(), own.data(), n_queries, n_planes},
                     products, n_rows);
  };
  multiply(trial.plain(), expected.data());
  multiply(trial.tested(), actual.data());
  trial.expect(actual == expected, "multiply");
}

// Against products with bytes that have the middle in place of their lower halves.
void check_upper_products(Trial& trial) {
  constexpr std::size_t kRun = 16 * ProductRows::kStep;
  Random& random = trial.random;
  const std::size_t n_blocks = 1 + random.below(3), steps = 2 + 2 * random.below(15),
                    length = ProductRows::kStep * steps;
  const std::size_t n_queries = random.below(9), n_rows = kBlock * (n_blocks - 1) + 1 + random.below(kBlock);
  auto entries = random.integers<std::uint8_t>(n_blocks * kBlock * length);
  if (random.one_in(2)) std::fill(entries.begin(), entries.end(), random.extreme<std::uint8_t>());
  std::vector<std::uint8_t> upper(entries.size() / 2);
  for (std::size_t i = 0; i < upper.size(); ++i) {
    const std::uint8_t* even = entries.data() + i / kRun * 2 * kRun + i % kRun;
    upper[i] = static_cast<std::uint8_t>(even[0] >> 4 | (even[kRun] & 0xf0));
  }
  for (std::uint8_t& entry : entries) entry = static_cast<std::uint8_t>((entry & 0xf0) | UpperRows::kMiddle);
  const std::vector<float> scales(n_blocks * kBlock, 0.25f), query_scales(n_queries, 0.5f);
  auto query_entries = random.integers<std::int8_t>(n_queries * length);
  if (random.one_in(2)) std::fill(query_entries.begin(), query_entries.end(), random.extreme<std::int8_t>());
  const auto plain = surpluses(trial.plain(), query_entries, length);
  const auto own = surpluses(trial.tested(), query_entries, length);
  const ProductQueries of_plain{query_entries.data(), query_scales.data(), plain.data(), n_queries, 1};
  const ProductQueries of_tested{query_entries.data(), query_scales.data(), own.data(), n_queries, 1};
  const UpperRows rows{upper.data(), scales.data(), n_blocks, steps};
  std::vector<float> expected(n_queries * n_rows), by_plain = random.whole_floats(expected.size()), actual = by_plain;
  trial.plain().multiply({entries.data(), scales.data(), n_blocks, steps}, n_rows, of_plain, expected.data(), n_rows);
  trial.plain().multiply_upper(rows, n_rows, of_plain, by_plain.data(), n_rows);
  trial.tested().multiply_upper(rows, n_rows, of_tested, actual.data(), n_rows);
  trial.expect(by_plain == expected, "multiply_upper by plain loops");
  trial.expect(actual == expected, "multiply_upper");
}

// By products of all queries with all rows.
void check_strongest(Trial& trial) {
  constexpr std::size_t kLanes = StrongestProduct::kLanes;
  Random& random = trial.random;
  const std::size_t n_blocks = 1 + random.below(6), steps = 1 + random.below(70), length = ProductRows::kStep * steps;
  const std::size_t depth = std::size_t{1} << random.below(5), n_queries = random.below(random.one_in(2) ? 9 : 130);
  const std::size_t n_rows = n_blocks * kBlock, stride = (n_rows / kLanes + depth - 1) / depth * kLanes;
  const auto entries = random.integers<std::uint8_t>(n_rows * length);
  std::vector<float> scales(n_rows);  // with some of padding
  for (float& scale : scales) scale = random.one_in(9) ? 0.0f : random.one_in(2) ? 0x1p-24f : -0x1p-26f;
  const auto query_entries = random.integers<std::int8_t>(n_queries * length);
  const std::vector<float> query_scales(n_queries, 0.5f);
  const auto plain_surpluses = surpluses(trial.plain(), query_entries, length);
  const auto own_surpluses = surpluses(trial.tested(), query_entries, length);
  const ProductRows rows{entries.data(), scales.data(), n_blocks, steps};
  const ProductQueries queries{query_entries.data(), query_scales.data(), plain_surpluses.data(), n_queries, 1};
  const ProductQueries own{query_entries.data(), query_scales.data(), own_surpluses.data(), n_queries, 1};
  std::vector<std::uint32_t> expected(n_queries * stride), actual(n_queries * stride, 0xffffffff);
  trial.plain().multiply_strongest(rows, depth, queries, expected.data(), stride);
  trial.tested().multiply_strongest(rows, depth, own, actual.data(), stride);
  trial.expect(actual == expected, "multiply_strongest");

  std::vector<float> products(n_queries * n_rows);
  trial.plain().multiply(rows, n_rows, queries, products.data(), n_rows);
  bool holds = true;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const std::size_t q = i / stride, row = StrongestProduct::row(expected[i], i % stride, depth);
    const std::size_t first = i % stride / kLanes * depth * kLanes + i % kLanes;
    float most = 0.0f;
    for (std::size_t r = first; r < std::min(first + depth * kLanes, n_rows); r += kLanes)
      most = std::max(most, std::fabs(products[q * n_rows + r]));
    const float found = StrongestProduct::product(expected[i]);
    // Of the mantissa, some bits are the place.
    holds = holds && std::fabs(std::fabs(found) - most) <= 0x1p-18f * most &&
            std::fabs(products[q * n_rows + row] - found) <= 0x1p-18f * most;
  }
  trial.expect(holds, "the strongest product");
}

void check_byte_dots(Trial& trial) {
  Random& random = trial.random;
  const std::size_t length = kByteStep * (1 + random.below(5)), n_rows = random.below(11);
  auto bytes = random.integers<std::uint8_t>(n_rows * length);
  auto query = random.integers<std::int8_t>(length);
  if (random.one_in(4)) {
    std::fill(bytes.begin(), bytes.end(), random.extreme<std::uint8_t>());
    std::fill(query.begin(), query.end(), random.extreme<std::int8_t>());
  }
  std::vector<const std::uint8_t*> rows;
  for (std::size_t r = 0; r < n_rows; ++r) rows.push_back(bytes.data() + r * length);
  std::vector<std::int32_t> expected(n_rows), actual(n_rows);
  for (std::size_t r = 0; r < n_rows; ++r)
    for (std::size_t i = 0; i < length; ++i) expected[r] += (rows[r][i] - ProductRows::kAdded) * query[i];
  const std::int32_t surplus = trial.tested().surplus(query.data(), length);
  trial.tested().byte_dots(rows.data(), n_rows, query.data(), length, surplus, actual.data());
  trial.expect(actual == expected, "byte_dots");
}

// Against sums over rows that are not interleaved.
void check_interleaved(Trial& trial) {
  constexpr std::size_t kRows = InterleavedRows::kRows;
  Random& random = trial.random;
  const std::size_t count = kBlock * (1 + random.below(6)), n_fours = random.below(4);
  const std::size_t depth = std::size_t{1} << random.below(5);
  const auto bytes = random.integers<std::uint8_t>(n_fours * kRows * count);
  const auto weights = random.integers<std::int8_t>(2 * n_fours * kRows);
  std::vector<std::uint8_t> expected(bytes.size()), actual(bytes.size());
  for (std::size_t four = 0; four < n_fours; ++four) {
    const std::uint8_t* rows[kRows];
    for (std::size_t r = 0; r < kRows; ++r) rows[r] = bytes.data() + (four * kRows + r) * count;
    trial.plain().interleave(rows, count, expected.data() + four * kRows * count);
    trial.tested().interleave(rows, count, actual.data() + four * kRows * count);
  }
  trial.expect(actual == expected, "interleave");

  std::vector<float> products = random.whole_floats(count);
  for (float& product : products) product *= 0x1p-24f;
  const InterleavedRows taken{expected.data(), weights.data(), n_fours, 0x1p-22f};
  const std::size_t n_groups = (count / StrongestProduct::kLanes + depth - 1) / depth * StrongestProduct::kLanes;
  std::vector<std::uint32_t> strongest(n_groups), found(n_groups, 0xffffffff);
  trial.plain().strongest_left(products.data(), count, taken, depth, strongest.data());
  trial.tested().strongest_left(products.data(), count, taken, depth, found.data());
  trial.expect(found == strongest, "strongest_left");
  bool holds = true;
  for (std::size_t at = 0; at < n_groups; ++at) {
    const std::size_t column = StrongestProduct::row(found[at], at, depth);
    double left = products[column], most = std::fabs(left);
    for (std::size_t r = 0; r < n_fours * kRows; ++r) {
      const double entry = bytes[r * count + InterleavedRows::place(column)] - ProductRows::kAdded;
      const double weight = taken.step * (weights[r] + weights[n_fours * kRows + r] / InterleavedRows::kFiner);
      left += entry * weight;
      most += std::fabs(entry * weight);
    }
    holds = holds && std::fabs(StrongestProduct::product(found[at]) - left) <= 0x1p-18 * most;
  }
  trial.expect(holds, "what is left of a product");
}

void check_floats(Trial& trial) {
  Random& random = trial.random;
  const std::size_t count = random.below(150), n_rows = random.below(9), n_others = random.below(9);
  const std::vector<float> x = random.whole_floats(n_rows * count), y = random.whole_floats(n_others * count);
  std::vector<const float*> rows, others;
  for (std::size_t r = 0; r < n_rows; ++r) rows.push_back(x.data() + r * count);
  for (std::size_t r = 0; r < n_others; ++r) others.push_back(y.data() + r * count);
  std::vector<float> expected(n_rows * n_others), actual(n_rows * n_others);
  trial.plain().dots(rows.data(), n_rows, others.data(), n_others, count, expected.data(), n_others);
  trial.tested().dots(rows.data(), n_rows, others.data(), n_others, count, actual.data(), n_others);
  trial.expect(actual == expected, "dots");
  if (n_rows > 0 && n_others > 0) trial.expect(trial.tested().dot(rows[0], others[0], count) == expected[0], "dot");

  const std::size_t width = kLanes * (1 + random.below(6)), stride = width + random.below(5);
  const std::vector<float> addends = random.whole_floats(n_rows * stride), weights = random.whole_floats(n_rows);
  std::vector<float> expected_sums = random.whole_floats(width), sums = expected_sums;
  for (std::size_t r = 0; r < n_rows; ++r)
    for (std::size_t i = 0; i < width; ++i) expected_sums[i] += weights[r] * addends[r * stride + i];
  trial.tested().add_rows(addends.data(), stride, weights.data(), n_rows, width, sums.data());
  trial.expect(sums == expected_sums, "add_rows");

  const auto numbers = random.some_of(n_rows, n_rows > 0 ? random.below(n_rows + 1) : 0);
  std::vector<float> expected_row(count), row(count);
  for (std::size_t r = 0; r < numbers.size(); ++r)
    for (std::size_t i = 0; i < count; ++i) expected_row[i] += weights[r] * x[numbers[r] * count + i];
  trial.tested().combine(x.data(), count, numbers.data(), weights.data(), numbers.size(), row.data());
  trial.expect(row == expected_row, "combine");
}

void check_round_to_levels(Trial& trial) {
  Random& random = trial.random;
  RoundingLevels levels{-8.0f, 1 + random.below(63), {}, {}};
  for (std::size_t i = 0; i < levels.n_bounds; ++i) levels.bounds[i] = static_cast<float>(i) / 4 - 8.0f;
  for (std::size_t i = 0; i < levels.n_bounds; ++i) levels.rises[i] = static_cast<float>(1 + random.below(3));
  const std::vector<float> x = random.whole_floats(kLanes * random.below(10));
  std::vector<float> expected(x.size()), actual(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected[i] = levels.lowest;
    for (std::size_t l = 0; l < levels.n_bounds; ++l)
      if (x[i] * 0.75f > levels.bounds[l]) expected[i] += levels.rises[l];
  }
  trial.tested().round_to_levels(x.data(), x.size(), 0.75f, levels, actual.data());
  trial.expect(actual == expected, "round_to_levels");
}

}  // namespace
}  // namespace compressae

int main() {
  using namespace compressae;
  const std::vector<float> u = Random(0).whole_floats(65536);
  std::size_t failures = 0;
  for (const Target& target : supported_targets()) {
    for (std::uint64_t seed = 1; seed <= kRounds; ++seed) {
      Trial trial{.target = target, .seed = seed, .failures = failures};
      check_accumulate(trial);
      check_lengthen(trial);
      check_thresholds(trial);
      check_harvest(trial);
      check_select(trial);
      check_code_dots(trial, u);
      check_residual_dots(trial);
      check_residual_rows(trial);
      check_widen(trial);
      check_products(trial);
      check_upper_products(trial);
      check_strongest(trial);
      check_byte_dots(trial);
      check_interleaved(trial);
      check_floats(trial);
      check_round_to_levels(trial);
    }
    std::printf("%s: %zu rounds\n", target.name, kRounds);
  }
  std::printf("%zu failures\n", failures);
  return failures == 0 ? 0 : 1;
}
