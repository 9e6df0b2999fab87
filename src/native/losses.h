// Cross-entropy of a row and its gradient, from the logits: sum(a * -log(p)) + z * W * logsumexp^2, where a is what the target
// asks of each class, a = weight * (kept * q + spread), and W the weight of the row.
#pragma once
#include <cstdint>

#include "products.h"

namespace {

// What takes the place of float32 as the type of a result that may err by a few units in the last place: powers have a shorter
// polynomial, and no tails.
struct Rough {};

template <>
struct Format<Rough> {
    // (2^r - 1) / r on [-1/2, 1/2]: relative error of 1 + r q(r) below 0.04 * 2^-24
    static constexpr double q[] = {0.6931472028550819,   0.24022647913626408,   0.055503324711005636,
                                   0.009618437357844595, 0.0013398874422093712, 0.00015353361880618074};
};

template <class T>
using LossResult = std::conditional_t<sizeof(T) == 4, Rough, T>;

// The largest element of a row, and the sum of its powers: exp(x) / 2^K, K as `shift` has it.
template <class T>
struct RowSum {
    T max;
    Shift<T> shift = Shift<T>::none();
    Pair sum;

    Power<T> power_of(T x, Rate<T> rate) const { return power<LossResult<T>>(x, shift, rate); }
};

// Of float32 the powers are stored in y, if there is one. False where there is no finite maximum.
template <class T>
bool sum_row(const T* x, T* y, ptrdiff_t n, Rate<T> rate, int threads, RowSum<T>& row) {
    if (x != y) {
        TameSum<T, true, LossResult<T>> tame(x, y, n, rate, threads);
        row.max = tame.largest, row.sum = tame.sum;
        if (tame.tame) return true;
    }
    row.max = maximum(x, n, threads);
    row.shift = Shift<T>(row.max, rate);
    if (std::isfinite(row.max)) row.sum = sum_of_powers<NOTHING, LossResult<T>>(x, y, n, row.max, row.shift, rate, threads);
    return std::isfinite(row.max);
}

// A sum without one of its terms.
template <class T>
Pair without(Pair sum, Power<T> term) {
    accumulate(sum.high, sum.low, -static_cast<double>(term.value), -static_cast<double>(term.tail));
    double high = sum.high + sum.low;
    return {high, (sum.high - high) + sum.low};
}

// The sum of the stored powers but for the largest.
inline Pair sum_of_smaller(const float* e, ptrdiff_t n, float largest) {
    Lanes<float> sums;
    float none[block] = {}, some[block];
    for (ptrdiff_t i = 0; i < n; i += block) {
        ptrdiff_t length = std::min(block, n - i);
#pragma omp simd
        for (ptrdiff_t j = 0; j < length; ++j) some[j] = e[i + j] == largest ? 0 : e[i + j];
        sums.add(some, none, length);
    }
    return sums.total();
}

// The sum of the powers of all elements but the largest. Where that has nearly all the weight, their sum with it has lost them.
template <class T>
Pair sum_of_others(const T* x, const T* y, ptrdiff_t n, const RowSum<T>& row, Rate<T> rate, int threads) {
    Power<T> largest = row.power_of(row.max, rate);
    Pair others = without(row.sum, largest);
    if (others.high >= (sizeof(T) == 4 ? 0x1p-18 : 0x1p-40) * largest.value) return others;
    if constexpr (sizeof(T) == 8) {
        T* none = nullptr;
        return sum_of_powers<LARGEST, T>(x, none, n, row.max, row.shift, rate, threads);
    } else {
        return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            if (y) return sum_of_smaller(y + from, length, largest.value);
            float e[chunk];
            sum_of_powers<NOTHING, Rough>(x + from, e, length, row.max, row.shift, rate);
            return sum_of_smaller(e, length, largest.value);
        });
    }
}

// What a row's target asks of class i, a = weight * (kept * q + spread); of `index` it asks weight * kept more.
template <class T>
struct Target {
    int64_t index;  // negative: there is none
    const T *q, *weight;  // nullptr: 0 all along; 1 all along
    double kept, spread;
};

template <class T>
[[gnu::always_inline]] inline double weight_of(const T* weight, ptrdiff_t i) {
    return weight ? weight[i] : 1;
}

// The sums of a and of a * (m - x), which is 0 where a is.
struct Asked {
    Pair all{0, 0}, distance{0, 0};
};

template <bool with_q, bool with_weight, class T>
Asked asked_of_chunk(const T* x, const T* q, const T* weight, ptrdiff_t n, T m, double kept, double spread) {
    auto a = [=](ptrdiff_t i) {
        double asked = with_q ? fma(kept, static_cast<double>(q[i]), spread) : spread;
        return with_weight ? asked * weight[i] : asked;
    };
    Asked sums;
    sums.all = sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(a(i), 1); });
    sums.distance = sum_of<T>(n, [=](ptrdiff_t i) {
        double asked = a(i), d = static_cast<double>(m) - x[i];
        return Term<T>(asked, asked == 0 ? 0 : d);
    });
    return sums;
}

template <class T>
Asked asked_of(const T* x, ptrdiff_t n, T m, Target<T> target, int threads) {
    Asked sums;
    if (!target.q && target.spread == 0) return sums;
    auto of_chunk = target.q ? target.weight ? asked_of_chunk<true, true, T> : asked_of_chunk<true, false, T>
                             : target.weight ? asked_of_chunk<false, true, T> : asked_of_chunk<false, false, T>;
    auto at = [](const T* a, ptrdiff_t from) { return a ? a + from : a; };
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) {
            return of_chunk(x + from, at(target.q, from), at(target.weight, from), length, m, target.kept, target.spread);
        },
        [&](const Asked& part) {
            accumulate(sums.all.high, sums.all.low, part.all.high, part.all.low);
            accumulate(sums.distance.high, sums.distance.low, part.distance.high, part.distance.low);
        });
    return sums;
}

// power * scale - a: of the gradient, an element.
template <class T>
[[gnu::always_inline]] inline T gradient_of(Power<T> p, Scale<T> scale, T a) {
    return fma(p.value, scale.high, fma(p.value, scale.low, p.tail * scale.high) - a);
}

// Of float32 the powers are in y; kept and spread are those of the target, times the factor of the gradient.
template <bool with_q, bool with_weight, class T>
void gradient_chunk(const T* x, const T* q, const T* weight, T* y, ptrdiff_t n, Shift<T> shift, Rate<T> rate, Scale<T> scale,
                    T kept, T spread) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) {
        T a = with_q ? fma(kept, q[i], spread) : spread;
        if constexpr (with_weight) a *= weight[i];
        if constexpr (sizeof(T) == 4) y[i] = gradient_of(Power<T>{y[i], 0}, scale, a);
        else y[i] = gradient_of(power<T>(x[i], shift, rate), scale, a);
    }
}

template <class T>
void gradient_row(const T* x, T* y, ptrdiff_t n, const RowSum<T>& row, Rate<T> rate, Target<T> target, double factor, Pair by,
                  int threads) {
    auto of_chunk = target.q ? target.weight ? gradient_chunk<true, true, T> : gradient_chunk<true, false, T>
                             : target.weight && target.spread != 0 ? gradient_chunk<false, true, T>
                                                                   : gradient_chunk<false, false, T>;
    auto at = [](const T* a, ptrdiff_t from) { return a ? a + from : a; };
    Scale<T> scale(by);
    T kept = static_cast<T>(factor * target.kept), spread = static_cast<T>(factor * target.spread);
    Shift<T> shift = row.shift;
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        of_chunk(x + from, at(target.q, from), at(target.weight, from), y + from, length, shift, rate, scale, kept, spread);
    });
}

inline Pair times(Pair a, double b) {
    double high = a.high * b;
    return {high, fma(a.high, b, -high) + a.low * b};
}

// The loss of a row, and, with y, its gradient times factor; false where the row has no finite maximum.
template <class T>
bool cross_entropy_row(const T* x, T* y, ptrdiff_t n, Target<T> target, double z_loss, double factor, int threads, double& loss) {
    Rate<T> rate(1);
    bool has_index = target.index >= 0, overwrites = sizeof(T) == 4 && x == y;
    T x_t = has_index ? x[target.index] : 0;
    double w_t = has_index ? weight_of(target.weight, target.index) : 1, a_t = has_index ? w_t * target.kept : 0;
    RowSum<T> row;
    Asked asked;
    if (overwrites) asked = asked_of(x, n, maximum(x, n, threads), target, threads);
    if (!sum_row(x, sizeof(T) == 4 ? y : nullptr, n, rate, threads, row)) return false;
    if (!overwrites) asked = asked_of(x, n, row.max, target, threads);
    Pair others = sum_of_others(x, y, n, row, rate, threads);
    Pair log = log_of<T>(others, 1, row.power_of(row.max, rate));

    double all = rounded(asked.all) + a_t;
    Pair sum = asked.distance;
    if (has_index) accumulate(sum.high, sum.low, a_t * (static_cast<double>(row.max) - x_t), 0);
    accumulate(sum.high, sum.low, all * log.high, all * log.low);
    double logsumexp = row.max + rounded(log), z = z_loss * w_t * logsumexp;
    loss = rounded(sum) + (z_loss == 0 ? 0 : z * logsumexp);
    if (!y) return true;

    Pair by = reciprocal(row.sum);
    gradient_row(x, y, n, row, rate, target, factor, times(by, (all + 2 * z) * factor), threads);
    if (has_index) {  // all * p - a with 1 - p as what it is, the others' sum
        Power<T> p = row.power_of(x_t, rate);
        double one_less = rounded(times(by, rounded(x_t == row.max ? others : without(row.sum, p))));
        double others_asked = rounded(asked.all) - w_t * target.spread;
        y[target.index] = static_cast<T>((others_asked + 2 * z * (p.value * by.high) - all * one_less) * factor);
    }
    return true;
}

}  // namespace
