"""How good masks and images are (§4), and the pages that show it.

In reading order: clustered (standard errors), mask_scores (IoU at source resolution, baselines, intervals),
image_scores (refilled holes, Fréchet distance), mask_files (any method's masks), evaluate (one record an image), charts
(curves as SVG), page (index.html and sheets), bradley_terry (ratings from votes), study (the human study: `python -m
evaluation.study`). The pages are page.html, run.html, ballot.html, ratings.html.
"""
