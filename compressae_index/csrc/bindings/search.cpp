#include "search/search.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/codes.hpp"
#include "bindings/families.hpp"
#include "bindings/lists.hpp"
#include "bindings/refiners.hpp"

namespace compressae::bindings {
namespace {

// Searches parts, (lists, codes) each. With stage_one (n_queries, n_latents) by posting lists first, then the
// candidates by their codes; with stage_two alone every document by its codes. With a refiner, the best `refine`
// documents by their codes are scored again, by queries (n_queries, dim).
Hits search(const std::vector<std::pair<const InvertedLists*, const ForwardPart*>>& pairs,
            const std::optional<Input<float, 2>>& stage_one, const std::optional<Input<float, 2>>& stage_two,
            std::size_t query_nnz, std::size_t candidates, std::size_t top, const Bitmap& bitmap,
            std::size_t num_threads, const RefinerPart* refiner, const std::optional<Input<float, 2>>& queries,
            std::size_t refine, bool damped) {
  require(!pairs.empty(), "there are no parts to search");
  require(stage_one || stage_two, "there are no projections");
  require(query_nnz >= 1, "query_nnz is 0, expected at least 1");
  require(candidates >= 1, "candidates is 0, expected at least 1");
  const std::size_t n_latents = pairs.front().second->n_latents(), n_entries = pairs.front().second->n_entries();
  std::vector<Part> parts;
  std::size_t n_documents = 0;
  for (const auto& [lists, codes] : pairs) {
    require_equal(lists->n_documents(), codes->n_documents(), "documents of the posting lists");
    require_equal(lists->view().n_latents, n_latents, "latents of the posting lists");
    require_equal(codes->n_latents(), n_latents, "latents of the codes");
    require_equal(codes->n_entries(), n_entries, "latents of the codes, and one for norms");
    parts.push_back({&lists->view(), &codes->codes(), codes->n_documents(), n_documents});
    n_documents += codes->n_documents();
  }
  Scope scope = scope_of(std::move(parts), n_entries, bits_of(bitmap, n_documents));
  const std::size_t n_queries = (stage_one ? stage_one : stage_two)->shape(0);
  for (const auto* projections : {&stage_one, &stage_two})
    if (*projections) {
      require_equal((*projections)->shape(0), n_queries, "rows of projections");
      require_equal((*projections)->shape(1), n_entries, "columns of projections");
    }
  if (refiner != nullptr) {
    require(stage_two && queries, "a refiner needs the queries, and stage_two to choose what it scores");
    require_equal(refiner->n_documents(), n_documents, "documents of the refiner");
    require_equal(queries->shape(0), n_queries, "rows of queries");
    require_equal(queries->shape(1), refiner->dim(), "columns of queries");
    scope.refinement = {&refiner->refiner(), queries->data(), refine};
  }
  return searched(n_queries, top, [&](const Results& results) {
    if (!stage_one)
      search_dense(scope, stage_two->data(), n_queries, num_threads, results);
    else
      search_two_stage(scope, stage_one->data(), stage_two ? stage_two->data() : nullptr, n_queries, query_nnz,
                       candidates, num_threads, damped, results);
  });
}

}  // namespace

void bind_search(nb::module_& m) {
  m.attr("LISTED_PER_CODE") = kListedPerCode;
  m.attr("DAMPING") = kDamping;
  m.attr("UNSEEN") = kUnseen;
  m.def("search", &search, "parts"_a, "stage_one"_a.noconvert().none(), "stage_two"_a.noconvert().none(), "query_nnz"_a,
        "candidates"_a, "top"_a, "allowed"_a.noconvert().none(), "num_threads"_a, "refiner"_a.none() = nb::none(),
        "queries"_a.noconvert().none() = nb::none(), "refine"_a = 0, "damped"_a = false,
        "Best documents of parts, (lists, codes) each: (scores, rows), (n_queries, top). With projections stage_one,\n"
        "the best candidates by the posting lists of their query_nnz largest entries are scored by their codes: with\n"
        "the projections stage_two, or with those entries alone. With stage_two alone every document is. With a\n"
        "refiner, it scores the best `refine` by their codes again, by queries (n_queries, dim). Candidates are the\n"
        "best by sums; where damped, each product with a value s loses d s^2, and sums gain UNSEEN d; d is DAMPING\n"
        "times the share of the squares of stage_one that is not read.");
}

}  // namespace compressae::bindings
