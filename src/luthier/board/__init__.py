"""The page in the browser: `luthier board`. It reads records and events, and calls ``luthier.api``."""
