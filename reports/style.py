"""The style of report.html: light and dark, from a phone's width to a desk's, without a script."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --page: #fff; --edge: #d5dae0;
  --head: #f3f5f8; --link: #0757b5; --card: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #9aa5b1; --page: #14181d;
  --edge: #333b45; --head: #1e242b; --link: #7db5ff; --card: #fff } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: .5rem }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 76rem; margin: 0 auto; padding: .5rem 1rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.2rem 0 .8rem; padding-top: .7rem;
  border-top: 1px solid var(--edge) }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .5rem }
p, ul, pre { margin: .6rem 0 }
a { color: var(--link); text-decoration: none }
a:hover, a:focus-visible { text-decoration: underline }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
pre { overflow-x: auto; padding: .7rem .9rem; background: var(--head); border-radius: 6px }
sup { font-size: .7em; line-height: 0 }
.t { overflow-x: auto; margin: .6rem 0 1rem; border: 1px solid var(--edge); border-radius: 6px;
  width: fit-content; max-width: 100% }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .32rem .65rem; text-align: left; white-space: nowrap; background: var(--page);
  border-bottom: 1px solid var(--edge) }
th { background: var(--head); font-weight: 600; vertical-align: bottom; white-space: normal }
th:has(br) { min-width: 7.5rem }
th:first-child { white-space: nowrap }
tbody tr:last-child td { border-bottom: 0 }
.r { text-align: right }
th:first-child, td:first-child { position: sticky; left: 0; z-index: 1; max-width: 45vw;
  overflow: hidden; text-overflow: ellipsis; border-right: 1px solid var(--edge) }
.g th, .g td { position: static; text-align: left; max-width: none; border-right: 0 }
img { max-width: 100%; height: auto; padding: 6px; background: var(--card); border-radius: 6px;
  border: 1px solid var(--edge) }
.g img { max-width: none; vertical-align: top }
.g img:target { width: auto }
details { margin: .5rem 0 }
summary { cursor: pointer; color: var(--soft); padding: .2rem 0 }
nav { margin: 1rem 0; padding: .2rem .9rem; border: 1px solid var(--edge); border-radius: 6px }
nav summary { color: var(--ink); font-weight: 600; padding: .4rem 0 }
nav ul { margin: .2rem 0 .6rem; padding: 0; list-style: none }
nav li { padding: .22rem 0 }
@media (min-width: 60rem) { nav ul { columns: 2; column-gap: 2rem } nav li { break-inside: avoid }
  nav details::details-content { content-visibility: visible; block-size: auto } }
@media print { nav { display: none } .t { overflow: visible } }
"""
