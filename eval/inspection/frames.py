"""Results as pandas frames, if pandas is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monet.errors import ConfigError
from monet.extras import install_command

if TYPE_CHECKING:
    import pandas as pd


def frame(content: Any) -> pd.DataFrame:
    """A pandas frame from a pyarrow table, or from a list of rows.

    Raises:
        ConfigError: pandas is not installed; the message names the command that installs it.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ConfigError(f"frames need pandas, which is not installed: {install_command('frames')}") from None
    return pd.DataFrame(content) if isinstance(content, list) else content.to_pandas()
