"""Writers of a job's output files: one module per export, and what the modules share.

`pipeline.contract.exports` holds the table of exports, `writer` the protocol that each of them implements. Importing
this package loads neither PyAV nor OpenCV.
"""
