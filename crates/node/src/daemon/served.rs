use rekindle_api::control::Control;

use rekindle_settings::Settings;

/// The daemon as the process that serves it sees it.
pub trait Served: Control {
    /// Takes over the settings that can change at run time.
    fn reload(&self, settings: &Settings);
    /// Ends what goes on beside requests; guests go on.
    fn end(&self);
}
