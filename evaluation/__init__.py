"""How good masks and images are (§4), and the pages that show it.

In reading order: clustered (standard errors), mask_scores (IoU at source resolution, baselines, intervals),
image_scores (refilled holes, Fréchet and kernel distances), mask_files (any method's masks), evaluate (one record an
image), charts (curves as SVG), page (index.html and sheets), bradley_terry (ratings from votes), results (an
evaluation, read back), study (the human study: `python -m evaluation.study`), compare (runs beside each other: `python
-m evaluation.compare`). The pages are page.html, run.html, ballot.html, ratings.html and compare.html.
"""
