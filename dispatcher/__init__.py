"""Batching, retrying, correlating dispatcher for QStash (unofficial).

The public API of the library; `dispatcher.metrics` and `dispatcher.testing` are public too.
"""

from dispatcher.blocking import BlockingDelivery, BlockingDispatcher
from dispatcher.config import (
    BatchSettings,
    Config,
    LimitSettings,
    Queue,
    QueueSettings,
    RetrySettings,
    TransportSettings,
)
from dispatcher.delivery import Delivery
from dispatcher.dispatcher import Dispatcher
from dispatcher.errors import (
    Abandoned,
    AdmissionError,
    Attempt,
    Certainty,
    ConfigError,
    DeadlineExceeded,
    DeliveryError,
    DispatcherClosed,
    DispatcherError,
    Halted,
    MessageInvalid,
    MessageRejected,
    MessageTooLarge,
    OutboxError,
    OutcomeUnknown,
    QueueFull,
    QuotaExhausted,
    RetriesExhausted,
    StoreFull,
)
from dispatcher.message import Endpoint, Message, Receipt
from dispatcher.options import FlowControl, Options
from dispatcher.statistics import DrainReport, Statistics
from dispatcher.transport import HTTPTransport, Transport

__version__ = "0.1.0"

__all__ = [
    "Abandoned",
    "AdmissionError",
    "Attempt",
    "BatchSettings",
    "BlockingDelivery",
    "BlockingDispatcher",
    "Certainty",
    "Config",
    "ConfigError",
    "DeadlineExceeded",
    "Delivery",
    "DeliveryError",
    "Dispatcher",
    "DispatcherClosed",
    "DispatcherError",
    "DrainReport",
    "Endpoint",
    "FlowControl",
    "HTTPTransport",
    "Halted",
    "LimitSettings",
    "Message",
    "MessageInvalid",
    "MessageRejected",
    "MessageTooLarge",
    "Options",
    "OutboxError",
    "OutcomeUnknown",
    "Queue",
    "QueueFull",
    "QueueSettings",
    "QuotaExhausted",
    "Receipt",
    "RetriesExhausted",
    "RetrySettings",
    "Statistics",
    "StoreFull",
    "Transport",
    "TransportSettings",
    "__version__",
]
