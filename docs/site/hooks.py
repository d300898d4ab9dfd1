"""MkDocs: puts the figures of results/ into the site; pages link to ../results/."""

from pathlib import Path

from mkdocs.structure.files import File

RESULTS = Path(__file__).resolve().parents[2] / "results"


def on_files(files, config):
    for figure in sorted(RESULTS.glob("**/*.png")):
        uri = f"figures/results/{figure.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown, page, config, files):
    if "/" not in page.file.src_uri:
        markdown = markdown.replace("](../results/", "](figures/results/")
    return markdown
