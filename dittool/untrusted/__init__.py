"""Readers of files from strangers. They trust nothing that a file says.

What an attacker controls: every byte of the file, and so every name, length, offset, count, dtype, shape and nesting in
it, its ending, and whether it is a regular file at all. What he wants: to run code (a pickle is a program), to write or
read elsewhere (names that climb, links), to exhaust memory or time (a header that claims a terabyte, values that refer
to themselves a million times), or to be two things at once (a reader that checks sees one file, the one that loads
another).

What every reader here promises: it imports, calls, extracts and unpickles nothing that the file names; its memory is
bounded by the file's own length or by the limits at the top of its module, and its time grows with the file and no
faster; it ends with a value that describes every byte, or with `BadDataError` (damaged, or no such file) or
`UnsafeFileError` (nothing honest looks so), which name the file and the fault. No other exception leaves it but
`OSError`.

    zip_archive          the archive around a `.pt`: both directories agree, members tile the file, nothing is packed
    pickle_walk          the pickle inside, followed on paper: a value with a `TensorSpec` for each tensor
    safetensors_header   the header, and that the tensors it names tile the rest of the file
    npy                  a plain array of numbers whose header fits the file to the byte
    tar                  where the members of a shard lie: plainly named regular files, closed by two zero blocks
    tensor_spec          what pickle_walk and safetensors_header say of a tensor

Values are not judged: a NaN is for whoever uses it. A library may load a file only after one of these has read it
(`ckpt.load`).
"""
