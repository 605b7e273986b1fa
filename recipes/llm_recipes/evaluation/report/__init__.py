"""A report of run records: one HTML file and the same in Markdown.

    from llm_recipes.evaluation.report.collect import collect
    from llm_recipes.evaluation.report.sections import make_report
    from llm_recipes.evaluation.report.html import html
    from llm_recipes.evaluation.report.markdown import markdown

collect reads the records; a module a section makes tables, pictures and words of them (blocks.py),
which html.py and markdown.py show.
"""
