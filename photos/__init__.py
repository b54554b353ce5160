"""Cut, remove, paste and move in photographs of any size.

In reading order: edit (the operations), matting (between a crop and the photograph's resolution), detail (for
fills, from around them), files (photographs as files), jobs (which photographs, which boxes or masks, what the
results are called), export (the generators for other programs), onnx_cut (an example of such a program), boxes (the
page to draw boxes on, boxes.html).
"""
