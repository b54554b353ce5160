"""How good masks and images are (§4), and the pages that show it.

In reading order: mask_scores (IoU at source resolution, baselines, intervals), image_scores (refilled holes, Fréchet
distance), evaluate (one record an image), page (index.html and sheets), charts (curves as SVG), study (the human study:
`python -m evaluation.study`), bradley_terry (ratings from votes).
"""
