// What Python sees of losses: cross_entropy of arrays as they are, of rows, and exact sums.
#pragma once
#include <cmath>

#include "exp2.h"
#include "half.h"
#include "order.h"

namespace {

// cross_entropy_rows(x, y, targets, weight, ignored, kept, spread, z_loss, factor, loss, after_blas): x as above, y for the
// gradient or None; targets int64, one a row, all of them `ignored` or indices of a row, or of the dtype and shape of x; weight of
// the dtype of x or None; loss float64, one a row.
PyObject* cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t count) {
    bool ok = count == 11 && PyLong_Check(args[4]) && PyBool_Check(args[10]);
    for (int i : {5, 6, 7, 8}) ok = ok && PyFloat_Check(args[i]);
    for (int i : {0, 1, 2, 3, 9}) ok = ok && (PyArray_Check(args[i]) || (args[i] == Py_None && (i == 1 || i == 3)));
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    if (ok = ok && is_rows(a[0]) && PyArray_ITEMSIZE(a[0]) > 2; ok) {
        PyArrayObject *x = a[0], *targets = a[2], *loss = a[9];
        npy_intp n = length(x), size = PyArray_SIZE(x);
        auto pointer = [=](int i) { return args[i] == Py_None ? nullptr : PyArray_DATA(a[i]); };
        bool are_indices = PyArray_TYPE(targets) == NPY_INT64;
        Losses losses{};
        losses.ignored = PyLong_AsLongLong(args[4]);
        losses.kept = PyFloat_AS_DOUBLE(args[5]);
        losses.spread = PyFloat_AS_DOUBLE(args[6]);
        losses.z_loss = PyFloat_AS_DOUBLE(args[7]);
        losses.factor = PyFloat_AS_DOUBLE(args[8]);
        losses.after_blas = args[10] == Py_True;
        losses.weight = pointer(3);
        losses.loss = static_cast<double*>(PyArray_DATA(loss));
        Rows rows{PyArray_DATA(x), pointer(1), size / n, n};
        (are_indices ? reinterpret_cast<const void*&>(losses.index) : rows.v) = pointer(2);
        rows.losses = &losses;
        auto fits = [=](int i, npy_intp count) {
            return args[i] == Py_None || (PyArray_ISCARRAY_RO(a[i]) && PyArray_TYPE(a[i]) == PyArray_TYPE(x) && PyArray_SIZE(a[i]) == count);
        };
        ok = fits(1, size) && (args[1] == Py_None || PyArray_ISWRITEABLE(a[1])) && fits(3, n) && PyArray_ISCARRAY(loss) &&
             PyArray_TYPE(loss) == NPY_DOUBLE && PyArray_SIZE(loss) == rows.count &&
             (are_indices ? PyArray_ISCARRAY_RO(targets) && PyArray_SIZE(targets) == rows.count : fits(2, size));
        if (ok && !run(CROSS_ENTROPY, x, rows)) return nullptr;
    }
    if (!ok) return PyErr_Format(PyExc_TypeError, "contiguous arrays of fitting sizes and dtypes are expected");
    Py_RETURN_NONE;
}

// Adds up numbers in order, in lanes, with what rounding takes from them.
class ExactSum {
    static constexpr npy_intp lanes = 8;
    double high[lanes] = {}, low[lanes] = {};

public:
    void add(const double* values, npy_intp n) {
        npy_intp i = 0;
        for (; i + lanes <= n; i += lanes) {
#pragma omp simd
            for (npy_intp l = 0; l < lanes; ++l) accumulate(high[l], low[l], values[i + l], 0);
        }
        for (; i < n; ++i) accumulate(high[0], low[0], values[i], 0);
    }
    Pair total() const {
        Pair sum{0, 0};
        for (npy_intp l = 0; l < lanes; ++l) accumulate(sum.high, sum.low, high[l], low[l]);
        return {sum.high, std::isfinite(sum.high) ? sum.low : 0};
    }
};

// sum(x): of contiguous float64, as two numbers, high + low.
PyObject* exact_sum(PyObject*, PyObject* argument) {
    auto x = reinterpret_cast<PyArrayObject*>(argument);
    if (!PyArray_Check(argument) || PyArray_TYPE(x) != NPY_DOUBLE || !PyArray_ISCARRAY_RO(x))
        return PyErr_Format(PyExc_TypeError, "a contiguous array of float64 is expected");
    ExactSum sum;
    sum.add(static_cast<const double*>(PyArray_DATA(x)), PyArray_SIZE(x));
    Pair total = sum.total();
    return Py_BuildValue("dd", total.high, total.low);
}

double value_at(PyArrayObject* a, npy_intp i) {
    return PyArray_TYPE(a) == NPY_FLOAT ? static_cast<const float*>(PyArray_DATA(a))[i]
                                        : static_cast<const double*>(PyArray_DATA(a))[i];
}

// To float, but where that is not exact, to an odd one: what rounds it to fewer bits then rounds the double.
float to_odd(double value) {
    float near = static_cast<float>(value);
    auto bits = std::bit_cast<uint32_t>(near);
    if (near == value || bits % 2) return near;
    return std::bit_cast<float>(std::fabs(near) < std::fabs(value) ? bits + 1 : bits - 1);
}

void set_value(PyArrayObject* a, npy_intp i, double value) {
    void* to = PyArray_DATA(a);
    switch (type_of(a)) {
        case FLOAT32: static_cast<float*>(to)[i] = static_cast<float>(value); break;
        case FLOAT16: static_cast<Float16*>(to)[i] = Float16(to_odd(value)); break;
        case BFLOAT16: static_cast<BFloat16*>(to)[i] = BFloat16(to_odd(value)); break;
        default: static_cast<double*>(to)[i] = value;
    }
}

// narrow(x, y): float32 into 16-bit floats, both contiguous and of one size. NumPy takes 100 ns where a float16 is subnormal.
PyObject* narrow_array(PyObject*, PyObject* const* args, Py_ssize_t count) {
    auto a = reinterpret_cast<PyArrayObject* const*>(args);
    bool ok = count == 2 && PyArray_Check(args[0]) && PyArray_Check(args[1]) && PyArray_TYPE(a[0]) == NPY_FLOAT;
    ok = ok && PyArray_ISCARRAY_RO(a[0]) && PyArray_ISCARRAY(a[1]) && PyArray_SIZE(a[0]) == PyArray_SIZE(a[1]);
    Type type = ok ? type_of(a[1]) : TYPES;
    if (type != FLOAT16 && type != BFLOAT16) return PyErr_Format(PyExc_TypeError, "float32, and as many floats of 16 bits, are expected");
    auto x = static_cast<const float*>(PyArray_DATA(a[0]));
    void* y = PyArray_DATA(a[1]);
    npy_intp n = PyArray_SIZE(a[0]);
    Py_BEGIN_ALLOW_THREADS;
    if (type == FLOAT16) narrow(x, static_cast<Float16*>(y), n);
    else narrow(x, static_cast<BFloat16*>(y), n);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

// The weight of all rows that count; false where an index is wrong.
bool weigh(const Losses& losses, PyArrayObject* weight, npy_intp rows, npy_intp n, double& total) {
    npy_intp counted = 0;
    bool right = true;
    for (npy_intp i = 0; i < rows; ++i) {
        bool counts = losses.index[i] != losses.ignored;
        right &= !counts || static_cast<npy_uintp>(losses.index[i]) < static_cast<npy_uintp>(n);
        counted += counts;
    }
    total = static_cast<double>(counted);
    if (!right || !weight) return right;
    ExactSum sum;
    for (npy_intp i = 0; i < rows; ++i) {
        double w = losses.index[i] == losses.ignored ? 0 : value_at(weight, losses.index[i]);
        sum.add(&w, 1);
    }
    total = sum.total().high + sum.total().low;
    return true;
}

PyObject* plain_cross_entropy(PyObject* const* args);

// cross_entropy(logits, targets, axis, weight, ignore_index, label_smoothing, z_loss, where, reduction, return_grad, out): for
// C-contiguous arrays of one dtype of floats, indices of any integers, and right arguments; None for anything else.
PyObject* direct_cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t count) {
    constexpr npy_intp few_indices = 1 << 16;
    if (count != 11) return PyErr_Format(PyExc_TypeError, "11 arguments expected, not %zd", count);
    auto targets = reinterpret_cast<PyArrayObject*>(args[1]);
    bool others = PyArray_CheckExact(args[1]) && PyArray_ISINTEGER(targets) && PyArray_SIZE(targets) <= few_indices &&
                  (PyArray_TYPE(targets) != NPY_INT64 || !PyArray_ISCARRAY_RO(targets));
    if (!others) return plain_cross_entropy(args);
    PyObject* indices = PyArray_FROM_OTF(args[1], NPY_INT64, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_ENSUREARRAY);
    if (!indices) {  // of uint64
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject* same[11];
    std::copy_n(args, 11, same);
    same[1] = indices;
    PyObject* result = plain_cross_entropy(same);
    Py_DECREF(indices);
    return result;
}

// The same of indices of int64.
PyObject* plain_cross_entropy(PyObject* const* args) {
    auto x = reinterpret_cast<PyArrayObject*>(args[0]), targets = reinterpret_cast<PyArrayObject*>(args[1]);
    PyObject *ignore = args[4], *reduction = args[8], *out = args[10];
    if (!PyArray_CheckExact(args[0]) || !PyArray_CheckExact(args[1]) || !is_rows(x) || !PyArray_ISCARRAY_RO(targets)) Py_RETURN_NONE;
    int ndim = PyArray_NDIM(x), overflow = 0;
    int axis = to_axis(args[2], x);
    if (!kernels->rows[CROSS_ENTROPY][type_of(x)] || axis < 0 || args[7] != Py_None) Py_RETURN_NONE;
    npy_intp n = PyArray_DIM(x, axis), rows = PyArray_SIZE(x) / n, after = within(x, axis), batch[NPY_MAXDIMS];
    std::copy_n(PyArray_DIMS(x) + axis + 1, ndim - axis - 1, std::copy_n(PyArray_DIMS(x), axis, batch));

    Losses losses{};
    losses.ignored = NPY_MIN_INT64;
    const void* q = nullptr;
    if (PyArray_TYPE(targets) == NPY_INT64) {
        if (PyArray_NDIM(targets) != ndim - 1 || !PyArray_CompareLists(PyArray_DIMS(targets), batch, ndim - 1)) Py_RETURN_NONE;
        losses.index = static_cast<const int64_t*>(PyArray_DATA(targets));
        if (PyLong_CheckExact(ignore)) losses.ignored = PyLong_AsLongLongAndOverflow(ignore, &overflow);
        else if (ignore != Py_None) Py_RETURN_NONE;
    } else {
        if (PyArray_TYPE(targets) != PyArray_TYPE(x) || !PyArray_SAMESHAPE(targets, x) || ignore != Py_None) Py_RETURN_NONE;
        q = PyArray_DATA(targets);
    }
    PyArrayObject* weight = nullptr;
    if (args[3] != Py_None) {
        if (PyArray_ITEMSIZE(x) == 2) Py_RETURN_NONE;
        weight = reinterpret_cast<PyArrayObject*>(args[3]);
        if (!PyArray_CheckExact(args[3]) || PyArray_TYPE(weight) != PyArray_TYPE(x) || !PyArray_ISCARRAY_RO(weight)) Py_RETURN_NONE;
        if (PyArray_NDIM(weight) != 1 || PyArray_SIZE(weight) != n) Py_RETURN_NONE;
        losses.weight = PyArray_DATA(weight);
    }
    if (!PyFloat_CheckExact(args[5]) || !PyFloat_CheckExact(args[6]) || !PyUnicode_Check(reduction) || overflow) Py_RETURN_NONE;
    double smoothing = PyFloat_AS_DOUBLE(args[5]);
    losses.z_loss = PyFloat_AS_DOUBLE(args[6]);
    if (!(smoothing >= 0 && smoothing <= 1) || !std::isfinite(losses.z_loss)) Py_RETURN_NONE;
    losses.kept = 1 - smoothing, losses.spread = smoothing / static_cast<double>(n);
    auto reduction_is = [=](const char* name) { return PyUnicode_CompareWithASCIIString(reduction, name) == 0; };
    bool mean = reduction_is("mean"), none = reduction_is("none"), with_grad = args[9] == Py_True;
    if (!(mean || none || reduction_is("sum")) || (!with_grad && (args[9] != Py_False || out != Py_None))) Py_RETURN_NONE;
    if (out != Py_None) {
        auto y = reinterpret_cast<PyArrayObject*>(out);
        if (!takes_directly(out, x, ndim, PyArray_DIMS(x), true) || overlap(y, targets) || (weight && overlap(y, weight))) Py_RETURN_NONE;
    }
    double total = static_cast<double>(rows);
    if (losses.index && !weigh(losses, weight, rows, n, total)) Py_RETURN_NONE;
    losses.factor = mean ? 1 / total : 1;

    // on one thread, the losses of some rows should stay near
    npy_intp most = threads_for(rows * n) == 1 ? 1 << 13 : 1 << 16, step = std::clamp<npy_intp>((1 << 22) / n, 1, most);
    PyObject* grad = !with_grad ? nullptr : out == Py_None ? PyArray_SimpleNew(ndim, PyArray_DIMS(x), PyArray_TYPE(x)) : Py_NewRef(out);
    PyObject* result = PyArray_SimpleNew(none ? ndim - 1 : 0, batch, PyArray_TYPE(x));
    losses.loss = static_cast<double*>(PyMem_RawMalloc(std::min(rows, step) * sizeof(double)));
    bool ok = result && (grad || !with_grad) && (losses.loss || PyErr_NoMemory());
    ExactSum sum;
    for (npy_intp from = 0, count; ok && from < rows; from += count) {
        npy_intp column = from % after, offset = (from - column) * n + column;
        count = std::min(step, rows - from);
        if (after > 1) count = column || count < after ? std::min(count, after - column) : count / after * after;
        auto at = [=](const void* a) { return static_cast<const char*>(a) + offset * PyArray_ITEMSIZE(x); };
        Losses part = losses;
        Rows some{at(PyArray_DATA(x)), nullptr, count, n};
        if (grad) some.y = const_cast<char*>(at(PyArray_DATA(reinterpret_cast<PyArrayObject*>(grad))));
        if (q) some.v = at(q);
        if (losses.index) part.index += from;
        some.after = after, some.losses = &part;
        ok = run(CROSS_ENTROPY, x, some);
        if (!none) sum.add(part.loss, some.count);
        for (npy_intp i = 0; none && i < some.count; ++i) set_value(reinterpret_cast<PyArrayObject*>(result), from + i, part.loss[i]);
    }
    PyMem_RawFree(losses.loss);
    if (!ok) Py_CLEAR(result);
    if (ok && !none) set_value(reinterpret_cast<PyArrayObject*>(result), 0, (sum.total().high + sum.total().low) / (mean ? total : 1));
    if (result && (!none || ndim == 1)) result = PyArray_Return(reinterpret_cast<PyArrayObject*>(result));
    if (result && grad) return Py_BuildValue("NN", result, grad);
    Py_XDECREF(grad);
    return result;
}

}  // namespace
