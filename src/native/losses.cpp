// Cross-entropy and its gradient.
#include "loss_rows.h"

#include "half.h"
#include "kernels.h"

namespace {

template <class T>
bool cross_entropy(const Rows& r) {
    LossRows<T> rows(r);
    if (r.n > middle_row_of<CROSS_ENTROPY, T>) rows.long_rows(r.count);
    else if (r.n > short_row_of<CROSS_ENTROPY, T>) rows.template short_rows<false>(r.count);
    else if (are_few_losses<T>(r)) rows.few_rows(r.count);
    else rows.template short_rows<true>(r.count);
    return rows.invalid;
}

// Of 16-bit floats, without weights: some rows at a time become float32, and their gradients go back.
template <class Half>
bool half_cross_entropy(const Rows& r) {
    const ptrdiff_t n = r.n, most = rows_at_a_time(n);
    auto x = static_cast<float*>(r.scratch), y = x + most * n, q = y + most * n;
    bool invalid = false;
    for (ptrdiff_t first = r.first, count; first < r.first + r.count; first += count) {
        count = std::min(most, r.first + r.count - first);
        auto from = static_cast<const Half*>(r.x) + first * n, q_from = static_cast<const Half*>(r.v) + (r.v ? first * n : 0);
        each_chunk(count * n, r.threads, [=](ptrdiff_t i, ptrdiff_t some) {
            widen(from + i, x + i, some);
            if (r.v) widen(q_from + i, q + i, some);
        });
        Losses losses = *r.losses;
        if (losses.index) losses.index += first;
        losses.loss += first;
        Rows rows{x, r.y ? y : nullptr, count, n};
        rows.v = r.v ? q : nullptr, rows.losses = &losses, rows.threads = r.threads;
        invalid |= cross_entropy<float>(rows);
        if (!r.y) continue;
        auto to = static_cast<Half*>(r.y) + first * n;
        each_chunk(count * n, r.threads, [=](ptrdiff_t i, ptrdiff_t some) { narrow(y + i, to + i, some); });
    }
    return invalid;
}

}  // namespace

namespace FASTSOFTMAX_ISA {

const Kernel cross_entropy_kernels[TYPES] = {cross_entropy<float>, cross_entropy<double>, half_cross_entropy<Float16>,
                                             half_cross_entropy<BFloat16>};

}  // namespace FASTSOFTMAX_ISA
