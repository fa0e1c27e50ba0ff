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
    torch_legacy         the same content as PyTorch wrote it before 1.6, without an archive
    pickle_walk          the pickle inside, followed on paper: a value with a `TensorSpec` for each tensor
    pickle_names         the policy: which names a pickle may use, and for what
    pickle_arguments     the arguments that functions of Python, torch and numpy are given
    foreign_calls        which classes of other programs may be called, and with what
    pickle_calls         the policy applied: what a call or a new object gives, nothing being called or made
    pickle_in_bytes      a pickle in the bytes of an object, which its class would unpickle
    pickle_bounds        how large and deep the content may be
    torch_values         storages and tensors in it, which must lie in the file
    numpy_values         numbers and arrays of numpy in it
    foreign_values       objects of other programs: their class's name, and what the file says is in them
    safetensors_header   the header, and that the tensors it names tile the rest of the file
    npy                  a plain array of numbers whose header fits the file to the byte
    npz                  several of them in a zip, each read when it is asked for
    tar                  where the members of a shard lie: plainly named regular files, closed by two zero blocks
    tensor_spec          what a `.pt` and safetensors_header say of a tensor

A class that a pickle names is never imported, nothing is looked up by its name. Our reader would survive any pickle; it
refuses those that would run code where somebody unpickles them, because its "nothing wrong here" is taken as leave to
do that. What counts as running code stands in `pickle_names`, in four steps from a name to a call.

Values are not judged: a NaN is for whoever uses it. Tensors of a `.pt` are built from its storages' bytes
(`ckpt.tensors`); a library may load a file only after one of these has read it (`ckpt.load`).
"""
