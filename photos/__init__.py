"""Cut, remove and paste in photographs of any size.

In reading order: edit (the three operations), matting (between a crop and the photograph's resolution), files
(photographs as files), jobs (which photographs, which boxes, what the results are called), export (the generators for
other programs).
"""
