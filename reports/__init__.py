"""Reports: records in, tables and plots out, with the published numbers beside them."""

from siambench.config import Verb

VERBS = {
    "report": Verb(
        name="report",
        help="Make report.md and its plots from the records of one or more run folders",
        config="reports.config:ReportConfig",
        run="reports.report:run",
        positional=("dirs",),
    ),
}
