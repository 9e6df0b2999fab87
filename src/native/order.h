// The order in which the elements of arrays lie. Another than C's is as good where they lie side by side; other arrays are read as
// rows apart, or copied.
#pragma once
#include <utility>

#include "arrays.h"

namespace {

struct Owned {
    PyArrayObject* array = nullptr;
    ~Owned() { Py_XDECREF(array); }
    PyObject* release() { return reinterpret_cast<PyObject*>(std::exchange(array, nullptr)); }
};

// How many elements of a lie within a step along an axis, if all lie side by side.
npy_intp within(PyArrayObject* a, int axis) {
    npy_intp step = PyArray_STRIDE(a, axis), count = 1;
    for (int i = 0; i < PyArray_NDIM(a); ++i) {
        npy_intp other = PyArray_STRIDE(a, i);
        if (i != axis && PyArray_DIM(a, i) > 1 && (other < step || (other == step && i > axis))) count *= PyArray_DIM(a, i);
    }
    return count;
}

// Whether they do.
bool is_dense(PyArrayObject* a) {
    if (PyArray_IS_C_CONTIGUOUS(a)) return true;
    for (int i = 0; i < PyArray_NDIM(a); ++i)
        if (PyArray_DIM(a, i) > 1 && PyArray_STRIDE(a, i) != within(a, i) * PyArray_ITEMSIZE(a)) return false;
    return true;
}

// Of arrays of one shape, whether they have the same strides.
bool have_same_strides(PyArrayObject* a, PyArrayObject* b) {
    for (int i = 0; i < PyArray_NDIM(a); ++i)
        if (PyArray_DIM(a, i) > 1 && PyArray_STRIDE(a, i) != PyArray_STRIDE(b, i)) return false;
    return true;
}

// Whether both are dense, and in the same order.
bool are_alike(PyArrayObject* a, PyArrayObject* b) {
    return (PyArray_IS_C_CONTIGUOUS(a) && PyArray_IS_C_CONTIGUOUS(b)) || (have_same_strides(a, b) && is_dense(a));
}

// A new array of a's shape and dtype: in C's order, or in that of a.
PyArrayObject* new_like(PyArrayObject* a, bool in_c) {
    in_c |= PyArray_IS_C_CONTIGUOUS(a);
    return reinterpret_cast<PyArrayObject*>(in_c ? PyArray_SimpleNew(PyArray_NDIM(a), PyArray_DIMS(a), PyArray_TYPE(a))
                                                 : PyArray_NewLikeArray(a, NPY_KEEPORDER, nullptr, 0));
}

// Whether y can be written while a is read: apart from it, or, `in_place`, the same.
bool goes_with(PyArrayObject* y, PyArrayObject* a, bool in_place) {
    return !overlap(y, a) || (in_place && PyArray_DATA(y) == PyArray_DATA(a) && have_same_strides(y, a));
}

// Whether a C-contiguous out fits, and goes with x.
bool takes_directly(PyObject* out, PyArrayObject* x, int ndim, const npy_intp* dims, bool in_place) {
    auto y = reinterpret_cast<PyArrayObject*>(out);
    return fits(out, x, ndim, dims) && PyArray_IS_C_CONTIGUOUS(y) && goes_with(y, x, in_place);
}

// A mask that broadcasts to the shape of x, as a view of that shape; null where it does not, or is no array of bools.
PyArrayObject* mask_of(PyObject* where, PyArrayObject* x) {
    auto keep = reinterpret_cast<PyArrayObject*>(where);
    if (!PyArray_CheckExact(where) || PyArray_TYPE(keep) != NPY_BOOL || !PyArray_ISBEHAVED_RO(keep)) return nullptr;
    const int ndim = PyArray_NDIM(x), missing = ndim - PyArray_NDIM(keep);
    if (missing < 0) return nullptr;
    npy_intp strides[NPY_MAXDIMS] = {};
    for (int i = missing; i < ndim; ++i) {
        npy_intp length = PyArray_DIM(keep, i - missing);
        if (length != 1 && length != PyArray_DIM(x, i)) return nullptr;
        if (length != 1) strides[i] = PyArray_STRIDE(keep, i - missing);
    }
    PyArray_Descr* dtype = PyArray_DescrFromType(NPY_BOOL);
    return reinterpret_cast<PyArrayObject*>(PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, PyArray_DIMS(x), strides, PyArray_DATA(keep), 0, nullptr));
}

// The mask laid out as y is: itself, where it is, and y is written elsewhere.
PyArrayObject* laid_out_as(PyArrayObject* y, PyArrayObject* keep) {
    bool is = !overlap(y, keep);
    for (int i = 0; i < PyArray_NDIM(y); ++i)
        is &= PyArray_DIM(y, i) <= 1 || PyArray_STRIDE(keep, i) * PyArray_ITEMSIZE(y) == PyArray_STRIDE(y, i);
    if (is) return reinterpret_cast<PyArrayObject*>(Py_NewRef(keep));
    auto copy = reinterpret_cast<PyArrayObject*>(PyArray_NewLikeArray(y, NPY_KEEPORDER, PyArray_DescrFromType(NPY_BOOL), 0));
    if (copy && PyArray_CopyInto(copy, keep) < 0) Py_CLEAR(copy);
    return copy;
}

// How many rows along an axis of a dense array lie side by side; those of one element are columns, beside all others.
npy_intp side_by_side(const Rows& rows, PyArrayObject* a, int axis) { return rows.n == 1 ? rows.count : within(a, axis); }

template <Function function>
PyObject* mapped(PyArrayObject* const* inputs, int axis, Rows rows, PyObject* to, PyArrayObject* keep = nullptr);

// Some of an array, along an axis; a view that does not own what it shows.
PyArrayObject* part_of(PyArrayObject* a, int axis, npy_intp first, npy_intp some) {
    npy_intp dims[NPY_MAXDIMS];
    std::copy_n(PyArray_DIMS(a), PyArray_NDIM(a), dims);
    dims[axis] = some;
    char* data = PyArray_BYTES(a) + first * PyArray_STRIDE(a, axis);
    PyArray_Descr* dtype = PyArray_DESCR(a);
    Py_INCREF(dtype);
    return reinterpret_cast<PyArrayObject*>(PyArray_NewFromDescr(&PyArray_Type, dtype, PyArray_NDIM(a), dims, PyArray_STRIDES(a), data,
                                                                 PyArray_FLAGS(a) & NPY_ARRAY_WRITEABLE, nullptr));
}

// The outermost axis of an array but one, or that one where there is no other.
int outermost(PyArrayObject* a, int axis) {
    auto step = [=](int i) { return std::abs(PyArray_STRIDE(a, i)); };
    int found = axis;
    for (int i = 0; i < PyArray_NDIM(a); ++i)
        if (i != axis && PyArray_DIM(a, i) > 1 && (found == axis || step(i) > step(found))) found = i;
    return found;
}

// A result, which is given up, in out.
PyObject* copied(PyObject* result, PyArrayObject* out) {
    int failed = PyArray_CopyObject(out, result);
    Py_DECREF(result);
    return failed ? nullptr : Py_NewRef(out);
}

// A function with as many results as elements, into an out that is not dense, or that overlaps what it is computed from: computed
// apart, some of it at a time where that is much, and copied.
template <Function function>
PyObject* mapped_in_parts(PyArrayObject* const* inputs, int axis, Rows rows, PyArrayObject* out, PyArrayObject* keep) {
    constexpr int count = 1 + vectors(function);
    constexpr npy_intp much = 1 << 20, narrow = 64;  // bytes; columns
    int cut = outermost(out, axis);
    npy_intp length = PyArray_DIM(out, cut), some = std::max<npy_intp>(1, much * length / PyArray_NBYTES(out));
    if (std::abs(PyArray_STRIDE(out, cut)) < std::abs(PyArray_STRIDE(out, axis))) some = std::max(some, narrow);
    bool go_with = std::all_of(inputs, inputs + count, [=](PyArrayObject* a) { return goes_with(out, a, true); });
    if (some >= length || cut == axis || !go_with || (keep && overlap(out, keep))) {
        PyObject* result = mapped<function>(inputs, axis, rows, Py_None, keep);
        return result ? copied(result, out) : nullptr;
    }
    for (npy_intp first = 0; first < length; first += some) {
        some = std::min(some, length - first);
        Owned parts[count], y{part_of(out, cut, first, some)}, mask{keep ? part_of(keep, cut, first, some) : nullptr};
        PyArrayObject* of_inputs[count];
        for (int i = 0; i < count; ++i)
            if (!(of_inputs[i] = parts[i].array = part_of(inputs[i], cut, first, some))) return nullptr;
        if (!y.array || (keep && !mask.array)) return nullptr;
        rows.count = PyArray_SIZE(y.array) / rows.n;
        PyObject* done = mapped<function>(of_inputs, axis, rows, reinterpret_cast<PyObject*>(y.array), mask.array);
        if (!done) return nullptr;
        Py_DECREF(done);
    }
    return Py_NewRef(out);
}

// A function with as many results as elements, along an axis of its inputs, of one shape. A new result is in the order of the first of
// them; in C's, where they are read as rows apart. An out that does not fit is left to others, with None.
template <Function function>
PyObject* mapped(PyArrayObject* const* inputs, int axis, Rows rows, PyObject* to, PyArrayObject* keep) {
    constexpr int count = 1 + vectors(function);
    PyArrayObject *x = inputs[0], *out = to == Py_None ? nullptr : reinterpret_cast<PyArrayObject*>(to), *like = out ? out : x;
    if (out && !fits(to, x, PyArray_NDIM(x), PyArray_DIMS(x))) Py_RETURN_NONE;
    bool alike = std::all_of(inputs, inputs + count, [=](PyArrayObject* a) { return are_alike(a, like); });
    bool apart = !alike && !keep && axis == PyArray_NDIM(x) - 1 && (!out || PyArray_IS_C_CONTIGUOUS(out));
    bool in_place = vectors(function) || keep || side_by_side(rows, like, axis) == 1;
    auto collides = [=](PyArrayObject* a) { return out && !goes_with(out, a, in_place); };
    if (out && (!is_dense(out) || (apart && std::any_of(inputs, inputs + count, collides))))
        return mapped_in_parts<function>(inputs, axis, rows, out, keep);
    Owned y{out ? reinterpret_cast<PyArrayObject*>(Py_NewRef(out)) : new_like(x, apart)}, copies[count], mask;
    if (!y.array || (keep && !(mask.array = laid_out_as(y.array, keep)))) return nullptr;
    if (keep) rows.where = static_cast<const bool*>(PyArray_DATA(mask.array));

    Layout layouts[count];
    const void* data[3] = {};
    for (int i = 0; i < count; ++i) {
        PyArrayObject* a = inputs[i];
        if (!apart && (!are_alike(a, y.array) || collides(a))) {
            copies[i].array = a = new_like(y.array, false);
            if (!a || PyArray_CopyInto(a, inputs[i]) < 0) return nullptr;
        }
        if (apart) layouts[i] = layout_of(a);
        data[i] = PyArray_DATA(a);
    }
    rows.x = data[0], rows.v = data[1], rows.u = data[2], rows.y = PyArray_DATA(y.array);
    if (apart) rows.layouts = layouts;
    else rows.after = side_by_side(rows, y.array, axis);
    return run(function, x, rows) ? y.release() : nullptr;
}

// A function with one result for each row along an axis of x. A new one is in the order of x; in C's, where x is read as rows apart.
template <Function function>
PyObject* reduced(PyArrayObject* x, int axis, Rows rows, PyObject* to, PyArrayObject* keep = nullptr) {
    const int ndim = PyArray_NDIM(x);
    auto out = to == Py_None ? nullptr : reinterpret_cast<PyArrayObject*>(to);
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS], of_result[NPY_MAXDIMS];
    auto without_axis = [=](const npy_intp* of_x, npy_intp* to) { std::copy(of_x + axis + 1, of_x + ndim, std::copy_n(of_x, axis, to)); };
    without_axis(PyArray_DIMS(x), shape), without_axis(PyArray_STRIDES(x), strides);
    shape[ndim - 1] = rows.n, strides[ndim - 1] = PyArray_STRIDE(x, axis);
    for (int i = 0; i < ndim - 1; ++i) of_result[i] = strides[i] > strides[ndim - 1] ? strides[i] / rows.n : strides[i];

    bool apart = !is_dense(x);
    if (out) {
        if (!fits(to, x, ndim - 1, shape)) Py_RETURN_NONE;
        if (!PyArray_IS_C_CONTIGUOUS(out) || overlap(out, x) || (keep && overlap(out, keep))) {
            PyObject* result = reduced<function>(x, axis, rows, Py_None, keep);
            return result ? copied(result, out) : nullptr;
        }
        for (int i = 0; i < ndim - 1; ++i) apart |= shape[i] > 1 && PyArray_STRIDE(out, i) != of_result[i];
    }
    Owned copy, mask;
    if (keep && apart) {
        copy.array = reinterpret_cast<PyArrayObject*>(PyArray_NewCopy(x, NPY_CORDER));
        return copy.array ? reduced<function>(copy.array, axis, rows, to, keep) : nullptr;
    }
    if (keep && !(mask.array = laid_out_as(x, keep))) return nullptr;
    if (keep) rows.where = static_cast<const bool*>(PyArray_DATA(mask.array));
    npy_intp* order = apart ? nullptr : of_result;
    PyObject* result = out ? Py_NewRef(to) : PyArray_New(&PyArray_Type, ndim - 1, shape, PyArray_TYPE(x), order, nullptr, 0, 0, nullptr);
    Owned y{reinterpret_cast<PyArrayObject*>(result)};
    if (!y.array) return nullptr;
    Layout layout{ndim, shape, strides};
    if (apart) rows.layouts = &layout;
    else rows.after = side_by_side(rows, x, axis);
    rows.x = PyArray_DATA(x), rows.y = PyArray_DATA(y.array);
    if (!run(function, x, rows)) return nullptr;
    return ndim == 1 && !out ? PyArray_Return(reinterpret_cast<PyArrayObject*>(y.release())) : y.release();
}

// Neighbouring axes of a C-contiguous array as one, in a view that does not own what it shows.
PyArrayObject* merged(PyArrayObject* a, Axes axes) {
    npy_intp dims[NPY_MAXDIMS], *end = std::copy_n(PyArray_DIMS(a), axes.first, dims);
    *end++ = PyArray_MultiplyList(PyArray_DIMS(a) + axes.first, axes.end - axes.first);
    end = std::copy(PyArray_DIMS(a) + axes.end, PyArray_DIMS(a) + PyArray_NDIM(a), end);
    PyArray_Descr* dtype = PyArray_DESCR(a);
    Py_INCREF(dtype);
    return reinterpret_cast<PyArrayObject*>(PyArray_NewFromDescr(&PyArray_Type, dtype, static_cast<int>(end - dims), dims, nullptr, PyArray_DATA(a),
                                                                 PyArray_FLAGS(a) & NPY_ARRAY_WRITEABLE, nullptr));
}

// A function along several axes; None where they do not lie as one.
template <Function function>
PyObject* along_several(PyArrayObject* x, Axes axes, Rows rows, PyObject* to, PyArrayObject* keep) {
    constexpr bool reduces = function == LOGSUMEXP;
    auto out = to == Py_None ? nullptr : reinterpret_cast<PyArrayObject*>(to);
    if (!PyArray_IS_C_CONTIGUOUS(x)) Py_RETURN_NONE;
    if (!reduces && out && (!fits(to, x, PyArray_NDIM(x), PyArray_DIMS(x)) || !PyArray_IS_C_CONTIGUOUS(out))) Py_RETURN_NONE;
    Owned one{merged(x, axes)}, mask{keep ? laid_out_as(x, keep) : nullptr}, one_mask;
    if (!one.array || (keep && (!mask.array || !(one_mask.array = merged(mask.array, axes))))) return nullptr;
    rows.n = PyArray_DIM(one.array, axes.first), rows.count = PyArray_SIZE(x) / rows.n;
    if constexpr (reduces) return reduced<function>(one.array, axes.first, rows, to, one_mask.array);
    Owned y{out ? reinterpret_cast<PyArrayObject*>(Py_NewRef(out)) : new_like(x, true)}, one_y{y.array ? merged(y.array, axes) : nullptr};
    if (!one_y.array) return nullptr;
    PyObject* done = mapped<function>(&one.array, axes.first, rows, reinterpret_cast<PyObject*>(one_y.array), one_mask.array);
    if (!done) return nullptr;
    Py_DECREF(done);
    return y.release();
}

}  // namespace
