"""Cut, remove and paste in photographs of any size.

In reading order: edit (the three operations), matting (between a crop and the photograph's resolution), detail (for
fills, from around them), files (photographs as files), jobs (which photographs, which boxes, what the results are
called), export (the generators for other programs), onnx_cut (an example of such a program).
"""
